//! Which cores the machine has, which of them are alike, and which are worth computing on.
//!
//! Everything is read, nothing is looked up by the name of a chip: capacities and clocks below `/sys/devices/system/cpu`, numbers of
//! designs and features in `/proc/cpuinfo`. Each of these may be missing or refused, file by file (Android lets programs open
//! `cpuN/` and refuses the listing of the folder above); what is left decides. Cores sleep: `/proc/cpuinfo` lists only those that are online, so
//! what it says of one core stands for those that share its clock.

use super::cores::CoreSet;
use super::design::{Midr, Width};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

/// A cluster with less than this share of the fastest cluster's speed is little, where the speed is known well. Decoding waits
/// for the slowest thread at every layer. Published capacities of middle cores begin at 0.49 (beside Cortex-X1), those of little
/// ones end at 0.40.
const LITTLE: f64 = 0.45;
/// The same where only clocks are known, which tell less: little cores run at up to 0.75 of the clock of the fastest.
const LITTLE_BY_CLOCK: f64 = 0.75;
/// A file of the kernel's is not longer than this; `/proc/cpuinfo` has up to 1.5 KiB for each core.
const MOST_BYTES: u64 = 1 << 20;

/// Cores that are alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Which.
    pub cores: CoreSet,
    /// What they are called, such as `Cortex-A78`, if that is known.
    pub design: Option<&'static str>,
    /// The kernel's number for their speed; the fastest core has 1024.
    pub capacity: Option<u64>,
    /// Their highest clock.
    pub max_khz: Option<u64>,
    /// Speed as a share of the fastest cluster's, as far as it can be told.
    pub speed: f64,
    /// Whether they slow the others down.
    pub little: bool,
}

/// The machine's cores.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Topology {
    /// Fastest first.
    pub clusters: Vec<Cluster>,
    /// What the CPU can do, as the kernel names it.
    pub features: Vec<String>,
}

impl Topology {
    /// Of this machine.
    pub fn here() -> Self {
        Self::read(Path::new("/"))
    }

    /// Of the machine whose `sys` and `proc` lie in `root`.
    pub fn read(root: &Path) -> Self {
        let about = CpuInfo::read(root);
        let sys = root.join("sys/devices/system/cpu");
        let mut cores: BTreeMap<u32, Core> = present(&sys, &about)
            .iter()
            .map(|number| (number, Core::read(&sys, number, &about)))
            .collect();
        let related: Vec<(u32, CoreSet)> = cores
            .iter()
            .map(|(number, core)| (*number, core.related.clone()))
            .collect();
        for (number, related) in related {
            let known = related.iter().find_map(|other| cores.get(&other)?.midr);
            if let Some(core) = cores.get_mut(&number) {
                core.midr = core.midr.or(known);
            }
        }
        // A core that sleeps may have no files at all; one of which nothing is known would spoil what is known of the others.
        if cores.values().any(|core| !core.is_unknown()) {
            cores.retain(|_, core| !core.is_unknown());
        }
        Self {
            clusters: clusters(&cores),
            features: about.features,
        }
    }

    /// All cores.
    pub fn cores(&self) -> CoreSet {
        let all = self
            .clusters
            .iter()
            .flat_map(|cluster| cluster.cores.iter());
        all.collect()
    }

    /// The cores that are not little.
    pub fn performance_cores(&self) -> CoreSet {
        let large = self.clusters.iter().filter(|cluster| !cluster.little);
        large.flat_map(|cluster| cluster.cores.iter()).collect()
    }

    /// Whether the kernel names this feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|known| known == feature)
    }
}

/// What is known of a core.
#[derive(Clone, Debug, Default)]
struct Core {
    capacity: Option<u64>,
    max_khz: Option<u64>,
    midr: Option<Midr>,
    /// Those with the same clock.
    related: CoreSet,
}

impl Core {
    fn read(sys: &Path, number: u32, about: &CpuInfo) -> Self {
        let folder = sys.join(format!("cpu{number}"));
        let clock = folder.join("cpufreq");
        let list = |path: &Path| text(path).and_then(|text| text.parse().ok());
        Self {
            capacity: positive(&folder.join("cpu_capacity")),
            max_khz: positive(&clock.join("cpuinfo_max_freq")),
            midr: about.midr.get(&number).copied(),
            related: list(&clock.join("related_cpus"))
                .or_else(|| list(&folder.join("topology/cluster_cpus_list")))
                .unwrap_or_default(),
        }
    }

    fn is_unknown(&self) -> bool {
        self.kind() == (None, None, None)
    }

    /// What makes cores alike.
    fn kind(&self) -> (Option<u64>, Option<u64>, Option<Midr>) {
        (self.capacity, self.max_khz, self.midr)
    }
}

/// The cores that there are, asleep or not. Several files say so, and any of them may be refused.
fn present(sys: &Path, about: &CpuInfo) -> CoreSet {
    let told = |file: &str| -> Option<CoreSet> { text(&sys.join(file))?.parse().ok() };
    let listed = || -> CoreSet {
        let entries = fs::read_dir(sys).into_iter().flatten();
        let number = |entry: std::io::Result<fs::DirEntry>| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_prefix("cpu")?.parse().ok()
        };
        entries.filter_map(number).collect()
    };
    let some = |cores: CoreSet| Some(cores).filter(|cores| !cores.is_empty());
    told("present")
        .and_then(some)
        .or_else(|| told("possible").and_then(some))
        .or_else(|| some(listed()))
        .unwrap_or_else(|| about.processors.clone())
}

/// Cores of a kind together, fastest first; of equally fast ones those with higher numbers, which the big ones have as a rule.
fn clusters(cores: &BTreeMap<u32, Core>) -> Vec<Cluster> {
    let mut kinds: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for (number, core) in cores {
        kinds.entry(core.kind()).or_default().push(*number);
    }
    let kinds: Vec<(Core, CoreSet)> = kinds
        .into_values()
        .filter_map(|numbers| {
            Some((
                cores.get(numbers.first()?)?.clone(),
                numbers.into_iter().collect(),
            ))
        })
        .collect();
    let measure = Measure::of(&kinds);
    let fastest = kinds.iter().map(|(core, _)| measure.speed(core));
    let fastest = fastest.fold(0.0, f64::max);
    let large_designs = kinds
        .iter()
        .any(|(core, _)| width(core) > Some(Width::Little));
    let mut clusters: Vec<Cluster> = kinds
        .iter()
        .map(|(core, cores)| {
            let speed = measure.speed(core) / fastest;
            let little_beside_large = width(core) == Some(Width::Little) && large_designs;
            Cluster {
                cores: cores.clone(),
                design: core.midr.and_then(|midr| Some(midr.design()?.0)),
                capacity: core.capacity,
                max_khz: core.max_khz,
                speed,
                little: little_beside_large || speed < measure.border(),
            }
        })
        .collect();
    clusters.sort_by(|one, other| {
        let by_number = other.cores.cmp(&one.cores);
        other.speed.total_cmp(&one.speed).then(by_number)
    });
    clusters
}

fn width(core: &Core) -> Option<Width> {
    Some(core.midr?.design()?.1)
}

/// How speeds are told: by the best that is known of all cores, because different measures can't be compared.
#[derive(Clone, Copy)]
enum Measure {
    /// The kernel's own numbers.
    Capacity,
    /// Clock, times what the design does in a cycle.
    ClockAndDesign,
    Clock,
    Design,
    Nothing,
}

impl Measure {
    fn of(kinds: &[(Core, CoreSet)]) -> Self {
        let all = |known: fn(&Core) -> bool| kinds.iter().all(|(core, _)| known(core));
        let capacities = kinds.iter().map(|(core, _)| core.capacity);
        // A kernel that was not told says 1024 for every core.
        let differ = capacities.clone().min() < capacities.max();
        let clocks = all(|core| core.max_khz.is_some());
        let designs = all(|core| width(core).is_some());
        match (clocks, designs) {
            _ if differ && all(|core| core.capacity.is_some()) => Self::Capacity,
            (true, true) => Self::ClockAndDesign,
            (true, false) => Self::Clock,
            (false, true) => Self::Design,
            (false, false) => Self::Nothing,
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "clocks in kHz are far below 2^53"
    )]
    fn speed(self, core: &Core) -> f64 {
        let clock = core.max_khz.unwrap_or(1) as f64;
        let work = width(core).map_or(1.0, Width::work);
        match self {
            Self::Capacity => core.capacity.unwrap_or(1) as f64,
            Self::ClockAndDesign => clock * work,
            Self::Clock => clock,
            Self::Design => work,
            Self::Nothing => 1.0,
        }
    }

    fn border(self) -> f64 {
        match self {
            Self::Clock => LITTLE_BY_CLOCK,
            _ => LITTLE,
        }
    }
}

/// `/proc/cpuinfo`, as far as it is of use.
#[derive(Default)]
struct CpuInfo {
    processors: CoreSet,
    midr: BTreeMap<u32, Midr>,
    features: Vec<String>,
}

impl CpuInfo {
    fn read(root: &Path) -> Self {
        Self::parse(&text(&root.join("proc/cpuinfo")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut about = Self::default();
        let mut processors = Vec::new();
        let mut current = None;
        let mut midr = [None; 3];
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            match key.trim() {
                // Old 32-bit kernels begin with a line `Processor : ARMv7 …`, which is no number.
                "processor" => {
                    current = value.parse::<u32>().ok();
                    processors.extend(current);
                    midr = [None; 3];
                }
                "Features" | "flags" if about.features.is_empty() => {
                    about.features = value.split_whitespace().map(Into::into).collect();
                }
                "CPU implementer" => midr[0] = hexadecimal(value),
                "CPU part" => midr[1] = hexadecimal(value),
                "CPU variant" => midr[2] = hexadecimal(value),
                _ => {}
            }
            if let (Some(core), [Some(implementer), Some(part), variant]) = (current, midr) {
                about.midr.insert(
                    core,
                    Midr {
                        implementer,
                        part,
                        variant: variant.unwrap_or(0),
                    },
                );
            }
        }
        about.processors = processors.into_iter().collect();
        about
    }
}

fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// A small file's text, if it may be read.
pub(super) fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(MOST_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

fn positive(path: &Path) -> Option<u64> {
    let number = text(path)?.trim().parse().ok();
    number.filter(|number| *number > 0)
}

#[cfg(test)]
pub(crate) mod tests;
