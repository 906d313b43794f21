//! Designs of ARM cores, told by the numbers that a core gives itself (`MIDR_EL1`, in `/proc/cpuinfo`): a name for people, and how
//! much a core does in a cycle.
//!
//! This is about cores, not about chips: a chip says which cores it has and how fast they run, and that is read. Only where the
//! kernel tells neither capacities nor clocks, the design alone has to do. Source of the numbers: cputype.h of the kernel.

/// What a core does in a cycle, roughly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// In-order cores, for what may take its time.
    Little,
    /// The usual out-of-order ones.
    Middle,
    /// The widest ones, of which a phone has one or two.
    Wide,
}

impl Width {
    /// Work per cycle as a share of the widest cores'; round numbers, for order and not for arithmetic.
    pub(super) fn work(self) -> f64 {
        match self {
            Self::Little => 0.35,
            Self::Middle => 0.75,
            Self::Wide => 1.0,
        }
    }
}

/// The numbers by which a core names its design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Midr {
    /// Who designed it.
    pub implementer: u32,
    /// Which design.
    pub part: u32,
    /// Which major revision of it; some chips have two kinds of cores that differ in nothing else.
    pub variant: u32,
}

impl Midr {
    /// The design's name and width, if it is known.
    pub fn design(self) -> Option<(&'static str, Width)> {
        let known = DESIGNS.iter();
        let mut known = known.filter(|(implementer, part, ..)| {
            (*implementer, *part) == (self.implementer, self.part)
        });
        known.next().map(|(_, _, name, width)| (*name, *width))
    }
}

const ARM: u32 = 0x41;
const HISILICON: u32 = 0x48;
const QUALCOMM: u32 = 0x51;
const SAMSUNG: u32 = 0x53;
const APPLE: u32 = 0x61;

use Width::{Little, Middle, Wide};

const DESIGNS: [(u32, u32, &str, Width); 42] = [
    (ARM, 0xd03, "Cortex-A53", Little),
    (ARM, 0xd04, "Cortex-A35", Little),
    (ARM, 0xd05, "Cortex-A55", Little),
    (ARM, 0xd46, "Cortex-A510", Little),
    (ARM, 0xd80, "Cortex-A520", Little),
    (ARM, 0xd07, "Cortex-A57", Middle),
    (ARM, 0xd08, "Cortex-A72", Middle),
    (ARM, 0xd09, "Cortex-A73", Middle),
    (ARM, 0xd0a, "Cortex-A75", Middle),
    (ARM, 0xd0b, "Cortex-A76", Middle),
    (ARM, 0xd0d, "Cortex-A77", Middle),
    (ARM, 0xd41, "Cortex-A78", Middle),
    (ARM, 0xd4b, "Cortex-A78C", Middle),
    (ARM, 0xd47, "Cortex-A710", Middle),
    (ARM, 0xd4d, "Cortex-A715", Middle),
    (ARM, 0xd81, "Cortex-A720", Middle),
    (ARM, 0xd87, "Cortex-A725", Middle),
    (ARM, 0xd44, "Cortex-X1", Wide),
    (ARM, 0xd48, "Cortex-X2", Wide),
    (ARM, 0xd4e, "Cortex-X3", Wide),
    (ARM, 0xd82, "Cortex-X4", Wide),
    (ARM, 0xd85, "Cortex-X925", Wide),
    (ARM, 0xd0c, "Neoverse N1", Wide),
    (ARM, 0xd40, "Neoverse V1", Wide),
    (ARM, 0xd49, "Neoverse N2", Wide),
    (ARM, 0xd4f, "Neoverse V2", Wide),
    (HISILICON, 0xd40, "Cortex-A76 (Kirin)", Middle),
    (QUALCOMM, 0x800, "Kryo 2xx Gold", Middle),
    (QUALCOMM, 0x801, "Kryo 2xx Silver", Little),
    (QUALCOMM, 0x802, "Kryo 3xx Gold", Middle),
    (QUALCOMM, 0x803, "Kryo 3xx Silver", Little),
    (QUALCOMM, 0x804, "Kryo 4xx Gold", Middle),
    (QUALCOMM, 0x805, "Kryo 4xx Silver", Little),
    (QUALCOMM, 0x001, "Oryon", Wide),
    (SAMSUNG, 0x001, "Exynos M1", Wide),
    (SAMSUNG, 0x002, "Exynos M3", Wide),
    (SAMSUNG, 0x003, "Exynos M4", Wide),
    (SAMSUNG, 0x004, "Exynos M5", Wide),
    (APPLE, 0x022, "Icestorm", Little),
    (APPLE, 0x023, "Firestorm", Wide),
    (APPLE, 0x032, "Blizzard", Little),
    (APPLE, 0x033, "Avalanche", Wide),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_design_stands_there_once() {
        let mut keys: Vec<_> = DESIGNS
            .iter()
            .map(|(implementer, part, ..)| (*implementer, *part))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), DESIGNS.len());
    }

    #[test]
    fn the_implementer_counts() {
        let midr = |implementer| Midr {
            implementer,
            part: 0xd40,
            variant: 0,
        };
        assert_eq!(
            midr(HISILICON).design(),
            Some(("Cortex-A76 (Kirin)", Middle))
        );
        assert_eq!(midr(ARM).design(), Some(("Neoverse V1", Wide)));
        assert_eq!(midr(0x99).design(), None);
    }
}
