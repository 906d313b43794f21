//! What the machine gives a program: which cores, how many of them are worth computing on, and how much memory.

pub mod children;
pub mod memory;

mod cgroup;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A core of less than this share of the fastest core's clock is a little one. Decoding waits for the slowest thread at
/// every layer, so little cores slow the others down.
const LITTLE: f64 = 0.75;

/// Threads to compute with when nobody said a number: the performance cores, and never more than the affinity mask and the
/// CPU quota of the cgroup allow.
pub fn default_threads() -> u32 {
    let allowed = allowed_threads();
    match performance_cores(Path::new("/sys/devices/system/cpu")) {
        Some(cores) => allowed.min(cores),
        None => allowed,
    }
}

/// Threads that can run at once: affinity mask and cgroup quotas counted.
pub fn allowed_threads() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let quota = cgroup::cores(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
    let quota = quota.and_then(|cores| u32::try_from(cores).ok());
    u32::try_from(cores)
        .unwrap_or(1)
        .min(quota.unwrap_or(u32::MAX))
}

/// Cores whose top clock comes near that of the fastest, if the system tells clocks at all.
fn performance_cores(root: &Path) -> Option<u32> {
    let clocks: Vec<u64> = fs::read_dir(root)
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?.strip_prefix("cpu")?;
            name.parse::<u32>().ok()?;
            fs::read_to_string(path.join("cpufreq/cpuinfo_max_freq"))
                .ok()?
                .trim()
                .parse()
                .ok()
        })
        .collect();
    let fastest = clocks.iter().copied().max()?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "clocks in kHz are far below 2^53"
    )]
    let near = clocks
        .iter()
        .filter(|clock| **clock as f64 >= LITTLE * fastest as f64)
        .count();
    u32::try_from(near).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(clocks: &[u64]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (cpu, clock) in clocks.iter().enumerate() {
            let folder = root.path().join(format!("cpu{cpu}/cpufreq"));
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("cpuinfo_max_freq"), format!("{clock}\n")).expect("a file");
        }
        fs::create_dir_all(root.path().join("cpuidle")).expect("a folder");
        root
    }

    #[test]
    fn little_cores_are_left_out() {
        // Four little, three middle, one big.
        let root = tree(&[
            1_804_000, 1_804_000, 1_804_000, 1_804_000, 2_419_000, 2_419_000, 2_419_000, 2_841_000,
        ]);
        assert_eq!(performance_cores(root.path()), Some(4));
        let root = tree(&[2_400_000; 4]);
        assert_eq!(performance_cores(root.path()), Some(4));
        let root = tree(&[]);
        assert_eq!(performance_cores(root.path()), None);
    }
}
