//! How warm the CPU is and how fast its cores run at this moment, where the system tells. Android tells programs nothing of
//! temperatures; then there is no answer, and clocks and speed have to speak.
//!
//! Zones are told apart by their `type`, never by their number, which moves between boots. The unit is usually a thousandth of
//! a degree, on some phones a tenth or a whole one.

use super::topology::{Cluster, Topology, text};
use std::fs;
use std::path::{Path, PathBuf};

/// Zones and sensors that are looked at.
const MOST_ZONES: usize = 256;
/// What a sensor that works can say, in degrees Celsius.
const SOUND: std::ops::RangeInclusive<f64> = -20.0..=130.0;

/// Words in names of zones that are about the CPU …
const CPU_WORDS: [&str; 12] = [
    "cpu", "cpuss", "tsens", "soc", "mtktscpu", "big", "mid", "little", "cluster", "k10temp",
    "coretemp", "x86",
];
/// … and in those of zones that are about something else, whatever else they say.
const OTHER_WORDS: [&str; 8] = [
    "gpu", "battery", "modem", "pa", "chg", "charge", "flash", "wlan",
];

/// The temperature of the hottest zone of the CPU, in degrees Celsius.
pub fn cpu_celsius() -> Option<f64> {
    cpu_celsius_in(Path::new("/"))
}

fn cpu_celsius_in(root: &Path) -> Option<f64> {
    let zones = folders(&root.join("sys/class/thermal"), "thermal_zone").into_iter();
    let zones = zones.filter_map(|folder| {
        let name = text(&folder.join("type"))?;
        let celsius = celsius(&text(&folder.join("temp"))?)?;
        is_cpu(name.trim()).then_some(celsius)
    });
    let monitors = folders(&root.join("sys/class/hwmon"), "hwmon").into_iter();
    let monitors = monitors.filter_map(|folder| {
        let name = text(&folder.join("name"))?;
        let celsius = celsius(&text(&folder.join("temp1_input"))?)?;
        is_cpu(name.trim()).then_some(celsius)
    });
    zones.chain(monitors).reduce(f64::max)
}

fn folders(of: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().take(MOST_ZONES);
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(prefix))
    };
    paths.filter(named).collect()
}

/// Whole words decide: `chg-skin-therm` is the charger's, `pa_therm1` the radio's.
fn is_cpu(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    let is = |known: &[&str]| {
        words.clone().any(|word| {
            let bare = word.trim_end_matches(|c: char| c.is_ascii_digit());
            known.contains(&word) || known.contains(&bare)
        })
    };
    is(&CPU_WORDS) && !is(&OTHER_WORDS)
}

/// A reading in degrees, whatever its unit; `None` for what no working sensor says.
fn celsius(reading: &str) -> Option<f64> {
    let number: f64 = reading.trim().parse().ok()?;
    let scaled = match number.abs() {
        0.0..150.0 => number,
        150.0..1500.0 => number / 10.0,
        _ => number / 1000.0,
    };
    SOUND.contains(&scaled).then_some(scaled)
}

/// The mean clock of each cluster's cores now, in MHz; `None` for a cluster that tells nothing.
pub fn clocks(topology: &Topology) -> Vec<Option<f64>> {
    clocks_in(Path::new("/"), topology)
}

fn clocks_in(root: &Path, topology: &Topology) -> Vec<Option<f64>> {
    let clock = |core: u32| -> Option<f64> {
        let file = format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq");
        let khz: u32 = text(&root.join(file))?.trim().parse().ok()?;
        Some(f64::from(khz) / 1000.0)
    };
    let of_cluster = |cluster: &Cluster| {
        let clocks: Vec<f64> = cluster.cores.iter().filter_map(clock).collect();
        let count = u32::try_from(clocks.len())
            .ok()
            .filter(|count| *count > 0)?;
        Some(clocks.iter().sum::<f64>() / f64::from(count))
    };
    topology.clusters.iter().map(of_cluster).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cgroup::tests::tree;

    /// Zones as the devices in `tests/fixtures/phones` name them.
    #[test]
    fn zones_of_the_cpu_are_told_from_others() {
        for cpu in [
            "cpu-0-0-usr",
            "cpuss-1",
            "tsens_tz_sensor7",
            "BIG",
            "MID",
            "LITTLE",
            "mtktscpu",
            "cpu_thermal",
            "cpu0-thermal",
            "cluster1-thermal",
            "cpu-thermal",
            "x86_pkg_temp",
            "k10temp",
            "soc",
            "soc_therm",
        ] {
            assert!(is_cpu(cpu), "{cpu}");
        }
        for other in [
            "battery",
            "bms",
            "pa_therm1",
            "xo_therm",
            "chg-skin-therm",
            "quiet_therm",
            "gpu-top-thermal",
            "TPU",
            "G3D",
            "usb_pwr_therm",
            "charge_therm",
            "mtktsbattery",
            "mtktspa",
            "wlan-thermal",
            "modem-thermal",
            "flash_therm",
            "ufs_therm",
            "nvme",
            "acpitz",
            "",
        ] {
            assert!(!is_cpu(other), "{other}");
        }
    }

    #[test]
    fn units_are_told_by_size_and_nonsense_is_left_out() {
        let table = [
            ("47400\n", Some(47.4)),
            ("474", Some(47.4)),
            ("47", Some(47.0)),
            ("-127000", None),
            ("255000", None),
            ("x", None),
            ("", None),
            ("NaN", None),
        ];
        for (reading, expected) in table {
            assert_eq!(celsius(reading), expected, "{reading}");
        }
    }

    #[test]
    fn the_hottest_zone_of_the_cpu_counts() {
        let zone =
            |number: u32, file: &str| format!("sys/class/thermal/thermal_zone{number}/{file}");
        let root = tree(&[
            (&zone(0, "type"), "mtktsbattery\n"),
            (&zone(0, "temp"), "90000\n"),
            (&zone(1, "type"), "mtktscpu\n"),
            (&zone(1, "temp"), "50600\n"),
            (&zone(2, "type"), "mtktspa\n"),
            (&zone(2, "temp"), "-127000\n"),
            ("sys/class/hwmon/hwmon0/name", "k10temp\n"),
            ("sys/class/hwmon/hwmon0/temp1_input", "41000\n"),
        ]);
        assert_eq!(cpu_celsius_in(root.path()), Some(50.6));
        assert_eq!(cpu_celsius_in(tree(&[]).path()), None);
    }

    #[test]
    fn a_clusters_clock_is_the_mean_of_its_cores() {
        let root = tree(&[
            ("sys/devices/system/cpu/present", "0-2\n"),
            (
                "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
                "1000000\n",
            ),
            (
                "sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq",
                "2000000\n",
            ),
            (
                "sys/devices/system/cpu/cpu2/cpufreq/cpuinfo_max_freq",
                "2000000\n",
            ),
            (
                "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq",
                "1000000\n",
            ),
            (
                "sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq",
                "2000000\n",
            ),
        ]);
        let topology = Topology::read(root.path());
        assert_eq!(clocks_in(root.path(), &topology), [Some(1500.0), None]);
    }
}
