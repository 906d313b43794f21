//! What the machine gives a program: which cores, how many of them are worth computing on, and how much memory.

pub mod bandwidth;
pub mod busy;
pub mod children;
pub mod cores;
pub mod design;
pub mod heat;
pub mod huge;
pub mod memory;
pub mod placement;
pub mod topology;

mod cgroup;

pub use cores::CoreSet;
pub use placement::{Allowed, Placement, Team};
pub use topology::Topology;

use std::collections::BTreeSet;
use std::path::Path;

/// Threads to compute with when nobody said a number: the performance cores, and never more than the affinity mask and the
/// CPU quota of the cgroup allow.
pub fn default_threads() -> u32 {
    placement::choose(&Topology::here(), &Allowed::here())
        .team
        .threads
}

/// Threads that can run at once: affinity mask and cgroup quotas counted.
pub fn allowed_threads() -> u32 {
    Allowed::here().threads()
}

/// Whole cores that the quotas of our cgroups leave, at least one; `None` where there is no quota.
pub fn quota() -> Option<u32> {
    let quota = cgroup::cores(Path::new("/proc"), Path::new("/sys/fs/cgroup"))?;
    Some(u32::try_from(quota).unwrap_or(u32::MAX))
}

/// The vector extensions that this binary was compiled for; with a native build, those of the machine that built it.
pub fn compiled_features() -> Vec<&'static str> {
    macro_rules! compiled {
        ($($name:tt),* $(,)?) => {
            [$((cfg!(target_feature = $name), $name)),*]
        };
    }
    let known = compiled![
        "neon",
        "dotprod",
        "fp16",
        "i8mm",
        "bf16",
        "sve",
        "sve2",
        "sse4.2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512vnni",
        "avx512bf16",
        "avxvnni",
    ];
    let present: BTreeSet<&str> = known
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| *name)
        .collect();
    present.into_iter().collect()
}
