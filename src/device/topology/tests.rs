//! 27 devices, as far as their sources tell: `tests/fixtures/phones`. Each is written out as the files that it would have.

use super::*;
use std::path::PathBuf;
use toml::{Table, Value};

/// A root with `sys` and `proc`, gone when it is dropped.
pub(crate) struct Phone(tempfile::TempDir);

impl Phone {
    /// The device of that name, or an empty machine.
    pub(crate) fn new(name: &str) -> Self {
        let phone = Self(tempfile::tempdir().expect("a temporary folder"));
        let text = fs::read_to_string(fixtures().join(format!("{name}.toml"))).expect("a fixture");
        let about: Table = text.parse().expect("TOML");
        if let Some(cpu) = about.get("cpu").and_then(Value::as_table) {
            phone.write_cpu(cpu);
        }
        phone
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        let path = self.root().join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    fn write_cpu(&self, cpu: &Table) {
        let sys = |file: &str, text: &str| {
            self.write(
                &format!("sys/devices/system/cpu/{file}"),
                &format!("{text}\n"),
            );
        };
        for file in ["possible", "present", "online"] {
            if let Some(text) = cpu.get(file).and_then(Value::as_str) {
                sys(file, text);
            }
        }
        if let Some(count) = cpu.get("count").and_then(Value::as_integer) {
            sys("present", &format!("0-{}", count - 1));
        }
        let mut blocks = BTreeMap::new();
        let clusters = cpu.get("cluster").and_then(Value::as_array);
        for cluster in clusters.into_iter().flatten() {
            let told = |key: &str| cluster.get(key).map(shown);
            let cores: CoreSet = told("cpus").expect("cores").parse().expect("a list");
            let asleep = told("no_cpuinfo_entry").unwrap_or_default();
            let asleep: CoreSet = asleep.parse().expect("a list");
            for core in cores.iter() {
                for (key, file) in [
                    ("cpu_capacity_computed", "cpu_capacity"),
                    ("max_khz", "cpufreq/cpuinfo_max_freq"),
                    ("related_cpus", "cpufreq/related_cpus"),
                    ("cluster_cpus_list", "topology/cluster_cpus_list"),
                ] {
                    if let Some(text) = told(key) {
                        sys(&format!("cpu{core}/{file}"), &text);
                    }
                }
                if let (Some(implementer), Some(part), false) =
                    (told("implementer"), told("part"), asleep.has(core))
                {
                    let variant = told("variant").unwrap_or_default();
                    blocks.insert(core, format!("CPU implementer\t: {implementer}\nCPU variant\t: {variant}\nCPU part\t: {part}\n"));
                }
            }
        }
        let features = cpu.get("features").and_then(Value::as_array);
        let features: Vec<String> = features.into_iter().flatten().map(shown).collect();
        let features = features.join(" ");
        let blocks: Vec<String> = blocks
            .iter()
            .map(|(core, block)| format!("processor\t: {core}\nFeatures\t: {features}\n{block}\n"))
            .collect();
        self.write("proc/cpuinfo", &blocks.concat());
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(shown).collect::<Vec<_>>().join(" "),
        Value::Integer(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/phones")
}

/// The clusters of every device, fastest first, and the cores that are worth computing on.
const PHONES: [(&str, &str, &str); 27] = [
    ("exynos-2200", "7 4-6 0-3", "4-7"),
    ("galaxy-a8-2018", "6-7 0-5", "6-7"),
    ("galaxy-s22-ultra", "7 4-6 0-3", "4-7"),
    ("galaxy-s24-plus", "9 4-8 0-3", "4-9"),
    ("galaxy-s25-plus", "6-7 0-5", "0-7"),
    ("galaxy-s9-global", "4-7 0-3", "4-7"),
    ("galaxy-s9-us", "4-7 0-3", "4-7"),
    ("huawei-mate-20", "6-7 4-5 0-3", "4-7"),
    ("iqoo-neo9-pro", "4-7 0-3", "0-7"),
    ("meizu-pro-7-plus", "8-9 4-7 0-3", "8-9"),
    ("mt8788-ax12", "", ""),
    ("nothing-phone-2", "7 4-6 0-3", "4-7"),
    ("oneplus-9-pro", "7 4-6 0-3", "4-7"),
    // Both kinds have the same clock.
    ("oppo-r15", "4-7 0-3", "4-7"),
    ("pixel-2-xl", "4-7 0-3", "4-7"),
    ("pixel-3a", "", ""),
    ("pixel-7", "6-7 4-5 0-3", "4-7"),
    ("pixel-8", "8 4-7 0-3", "4-8"),
    ("raspberry-pi-5", "0-3", "0-3"),
    ("redmi-k50-pro", "7 4-6 0-3", "4-7"),
    ("sdm845-mainline", "4-7 0-3", "4-7"),
    ("snapdragon-695", "6-7 0-5", "6-7"),
    ("sony-kugo", "", ""),
    ("xiaomi-13-pro", "7 5-6 3-4 0-2", "3-7"),
    ("xiaomi-14", "7 2-6 0-1", "2-7"),
    ("xiaomi-mi-8", "", ""),
    ("xperia-xz1-compact", "", ""),
];

#[test]
fn twenty_seven_devices_are_read_as_they_are() {
    for (name, clusters, performance) in PHONES {
        let topology = Topology::read(Phone::new(name).root());
        let found: Vec<String> = topology
            .clusters
            .iter()
            .map(|found| found.cores.to_string())
            .collect();
        assert_eq!(found.join(" "), clusters, "{name}");
        assert_eq!(
            topology.performance_cores().to_string(),
            performance,
            "{name}"
        );
    }
    let files = fs::read_dir(fixtures()).expect("the fixtures").count();
    assert_eq!(files, PHONES.len(), "every fixture has a line");
}

#[test]
fn features_are_those_of_the_kernel() {
    let read = |name| Topology::read(Phone::new(name).root());
    // The same chip family, with and without what matters.
    assert!(read("xiaomi-14").has("i8mm") && !read("xiaomi-14").has("sve2"));
    assert!(read("pixel-8").has("sve2") && !read("pixel-8").has("bf16"));
    assert!(read("pixel-7").has("asimddp") && !read("pixel-7").has("i8mm"));
    assert_eq!(read("pixel-3a").features, [""; 0]);
}

#[test]
fn what_is_missing_or_refused_leaves_the_rest() {
    let phone = Phone::new("pixel-8");
    let clocks = |phone: &Phone| phone.root().join("sys/devices/system/cpu/cpu0/cpufreq");
    // One core's clock is refused: designs decide.
    fs::remove_dir_all(clocks(&phone)).expect("a folder");
    assert_eq!(
        Topology::read(phone.root()).performance_cores().to_string(),
        "4-8"
    );
    // No designs: clocks decide, more carefully.
    let phone = Phone::new("pixel-8");
    fs::remove_file(phone.root().join("proc/cpuinfo")).expect("a file");
    assert_eq!(
        Topology::read(phone.root()).performance_cores().to_string(),
        "4-8"
    );
    // Neither: all cores are alike.
    fs::remove_dir_all(phone.root().join("sys/devices/system/cpu")).expect("a folder");
    phone.write("sys/devices/system/cpu/present", "0-8\n");
    let topology = Topology::read(phone.root());
    assert_eq!(topology.performance_cores().to_string(), "0-8");
    assert_eq!(topology.clusters.len(), 1);
    // A file that is no file, and nonsense.
    phone.write("sys/devices/system/cpu/cpu1/cpu_capacity/x", "");
    phone.write("sys/devices/system/cpu/present", "all of them");
    let topology = Topology::read(phone.root());
    assert_eq!(
        topology.cores().to_string(),
        "1",
        "only the listing is left"
    );
}

#[test]
fn capacities_decide_where_they_differ() {
    let phone = Phone::new("oneplus-9-pro");
    let capacity = |core: u32, capacity: u32| {
        phone.write(
            &format!("sys/devices/system/cpu/cpu{core}/cpu_capacity"),
            &format!("{capacity}\n"),
        );
    };
    // A kernel that was told nothing says the same of all: designs decide.
    (0..8).for_each(|core| capacity(core, 1024));
    assert_eq!(
        Topology::read(phone.root()).performance_cores().to_string(),
        "4-7"
    );
    (0..4).for_each(|core| capacity(core, 290));
    (4..7).for_each(|core| capacity(core, 820));
    let topology = Topology::read(phone.root());
    let speeds: Vec<f64> = topology
        .clusters
        .iter()
        .map(|cluster| cluster.speed)
        .collect();
    assert_eq!(speeds, [1.0, 820.0 / 1024.0, 290.0 / 1024.0]);
}

#[test]
fn sleeping_cores_are_like_those_that_share_their_clock() {
    let topology = Topology::read(Phone::new("meizu-pro-7-plus").root());
    let of = |index: usize| {
        (
            topology.clusters[index].design,
            topology.clusters[index].cores.to_string(),
        )
    };
    assert_eq!(of(0), (Some("Cortex-A73"), "8-9".into()));
    assert_eq!(of(1), (Some("Cortex-A53"), "4-7".into()));
}

#[test]
fn cpuinfo_of_old_and_other_kernels_is_read() {
    let old = CpuInfo::parse(
        "Processor\t: ARMv7 Processor rev 4 (v7l)\nprocessor\t: 0\nBogoMIPS\t: 38.00\n\nprocessor\t: 1\n\nFeatures\t: half thumb neon\nCPU implementer\t: 0x41\nCPU part\t: 0xd03\n",
    );
    assert_eq!(old.processors.to_string(), "0-1");
    assert_eq!(old.features, ["half", "thumb", "neon"]);
    let x86 = CpuInfo::parse(
        "processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu avx2\n",
    );
    assert_eq!((x86.processors.count(), x86.midr.len()), (2, 0));
    assert_eq!(x86.features, ["fpu", "avx2"]);
    let nothing = CpuInfo::parse("no colon\n: \nCPU part\t: twelve\n");
    assert!(nothing.processors.is_empty() && nothing.midr.is_empty());
}
