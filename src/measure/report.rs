//! What was measured, and what of it can be computed: plain data that is printed, or stands in `/status`.

use super::http::FirstToken;
use super::median;
use super::subject::Streams;
use super::sustained::Sustained;
use crate::device::bandwidth::Bandwidth;
use crate::device::topology::Cluster;
use crate::device::{Allowed, Placement, Topology, compiled_features};
use crate::engine::{CacheType, ModelInfo};
use crate::models::gguf::Gguf;
use crate::models::memory::cache_bytes_read;
use serde::Serialize;

/// Features that decide how fast the kernels are, as the kernel of the system names them, and as the compiler does.
const FEATURES: [(&str, &str); 15] = [
    ("asimddp", "dotprod"),
    ("asimdhp", "fp16"),
    ("i8mm", "i8mm"),
    ("bf16", "bf16"),
    ("sve", "sve"),
    ("sve2", "sve2"),
    ("sme", "sme"),
    ("avx", "avx"),
    ("avx2", "avx2"),
    ("fma", "fma"),
    ("f16c", "f16c"),
    ("avx512f", "avx512f"),
    ("avx512_vnni", "avx512vnni"),
    ("avx512_bf16", "avx512bf16"),
    ("avx_vnni", "avxvnni"),
];

/// Features of the kernels that are chosen at start, by the name of their file.
const VARIANTS: [(&str, &[&str]); 7] = [
    ("armv8.0_1", &[]),
    ("armv8.2_1", &["dotprod"]),
    ("armv8.2_2", &["dotprod", "fp16"]),
    ("armv8.2_3", &["dotprod", "fp16", "sve"]),
    ("armv8.6_0", &["dotprod", "fp16", "i8mm"]),
    ("armv8.6_1", &["dotprod", "fp16", "i8mm", "sve"]),
    ("armv8.6_2", &["dotprod", "fp16", "i8mm", "sve", "sve2"]),
];

/// The machine, as far as it matters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MachineFacts {
    /// Cores that are alike, fastest first.
    pub clusters: Vec<Cluster>,
    /// What of them this program may use now.
    pub allowed: Allowed,
    /// What the CPU can do of what matters, by the compiler's names.
    pub features: Vec<&'static str>,
    /// Of these, what the kernels in use were built for.
    pub features_in_use: Vec<&'static str>,
    /// Whom the system gives huge pages to: `always` all, `madvise` whom asks for them as we do, `never` nobody.
    pub huge_pages: Option<String>,
}

impl MachineFacts {
    /// `variant` names the kernels that were chosen at start, if they were.
    pub fn of(
        topology: &Topology,
        allowed: Allowed,
        variant: Option<&str>,
        huge_pages: Option<String>,
    ) -> Self {
        let built = match variant {
            Some(variant) => {
                let known = VARIANTS.iter().find(|(name, _)| *name == variant);
                known.map_or_else(Vec::new, |(_, features)| features.to_vec())
            }
            None => compiled_features(),
        };
        let here = FEATURES.iter().filter(|(kernel, _)| topology.has(kernel));
        let features: Vec<&str> = here.map(|(_, compiler)| *compiler).collect();
        let in_use = features.iter().filter(|feature| built.contains(feature));
        Self {
            clusters: topology.clusters.clone(),
            allowed,
            features_in_use: in_use.copied().collect(),
            features,
            huge_pages,
        }
    }

    /// What the CPU can do and the kernels in use don't.
    pub fn is_unused(&self, feature: &str) -> bool {
        self.features.contains(&feature) && !self.features_in_use.contains(&feature)
    }
}

/// The model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFacts {
    /// Its name.
    pub name: String,
    /// The mix of its file.
    pub quantisation: String,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of weights that decoding one token reads.
    pub bytes_per_token: u64,
}

impl ModelFacts {
    /// Of a file's header.
    pub fn of(name: &str, header: &Gguf) -> Self {
        Self {
            name: name.into(),
            quantisation: header.quantisation(),
            file_bytes: header.file_bytes(),
            parameters: header.parameters(),
            bytes_per_token: header.bytes_per_decoded_token(),
        }
    }
}

/// How it was run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunFacts {
    /// Cores and threads.
    pub placement: Placement,
    /// Why these.
    pub reason: String,
    /// Rows of a step at most.
    pub batch_size: u32,
    /// How the KV cache is stored.
    pub cache_type: CacheType,
    /// Layouts of weights that were chosen for this CPU.
    pub layouts: Vec<String>,
}

impl RunFacts {
    /// Of a model that was loaded.
    pub fn of(placed: (Placement, CacheType, &str), info: &ModelInfo) -> Self {
        let (placement, cache_type, reason) = placed;
        Self {
            placement,
            reason: reason.into(),
            batch_size: info.batch_size,
            cache_type,
            layouts: info.kernels.clone(),
        }
    }
}

/// The speed that memory allows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roofline {
    /// Bytes that decoding one token reads: weights, and the cache at this depth.
    pub bytes_per_token: u64,
    /// Tokens per second if nothing else took time.
    pub tokens_per_second: f64,
}

impl Roofline {
    /// With so many tokens before the one that is decoded.
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    pub fn of(header: &Gguf, cache_type: CacheType, depth: u32, bandwidth: u64) -> Self {
        let weights = header.bytes_per_decoded_token();
        let cache = cache_bytes_read(header, cache_type, depth.into());
        let bytes = weights.saturating_add(cache).max(1);
        Self {
            bytes_per_token: bytes,
            tokens_per_second: bandwidth as f64 / bytes as f64,
        }
    }
}

/// A row of the table: the same thing measured several times.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Test {
    /// As llama-bench calls it: `pp512`, `tg64`, `tg64 @ d1024`.
    pub name: String,
    /// Tokens per second, the middle one.
    pub tokens_per_second: f64,
    /// The slowest.
    pub least: f64,
    /// The fastest.
    pub most: f64,
    /// How often it was measured.
    pub repetitions: usize,
    /// What memory allows; for decoding, and if its bandwidth was measured.
    pub roofline: Option<Roofline>,
}

impl Test {
    /// Of measured speeds; nothing of none.
    pub fn of(name: String, speeds: &[f64], roofline: Option<Roofline>) -> Option<Self> {
        Some(Self {
            name,
            tokens_per_second: median(speeds),
            least: speeds.iter().copied().reduce(f64::min)?,
            most: speeds.iter().copied().reduce(f64::max)?,
            repetitions: speeds.len(),
            roofline,
        })
    }

    /// The share of what memory allows that is reached.
    pub fn of_roofline(&self) -> Option<f64> {
        let most = self.roofline?.tokens_per_second;
        (most > 0.0).then(|| self.tokens_per_second / most)
    }
}

/// Everything that `bench` found out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Of which build.
    pub version: &'static str,
    /// The model.
    pub model: ModelFacts,
    /// The machine.
    pub machine: MachineFacts,
    /// How it was run.
    pub run: RunFacts,
    /// What memory delivers.
    pub bandwidth: Vec<Bandwidth>,
    /// Prompts and single answers.
    pub tests: Vec<Test>,
    /// Several answers at once.
    pub streams: Vec<Streams>,
    /// Through HTTP.
    pub first_token: Option<FirstToken>,
    /// A long run.
    pub sustained: Option<Sustained>,
    /// The share of all cores that other programs had while single answers were measured, if the system tells.
    pub others: Option<f64>,
    /// What would help, in sentences.
    pub advice: Vec<String>,
}

/// The most that memory delivered, with any number of threads.
pub fn best(bandwidth: &[Bandwidth]) -> Option<u64> {
    bandwidth
        .iter()
        .map(|measured| measured.bytes_per_second)
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::topology::tests::Phone;

    fn facts(phone: &str, variant: &str) -> MachineFacts {
        let topology = Topology::read(Phone::new(phone).root());
        let allowed = Allowed {
            cores: topology.cores(),
            quota: None,
        };
        MachineFacts::of(&topology, allowed, Some(variant), None)
    }

    #[test]
    fn features_in_use_are_those_of_the_chosen_kernels() {
        let right = facts("xiaomi-14", "armv8.6_0");
        assert_eq!(right.features, ["dotprod", "fp16", "i8mm", "bf16"]);
        assert_eq!(right.features_in_use, ["dotprod", "fp16", "i8mm"]);
        assert!(!right.is_unused("i8mm"));
        assert!(facts("xiaomi-14", "armv8.2_2").is_unused("i8mm"));
        assert!(facts("xiaomi-14", "of next year").is_unused("dotprod"));
        assert!(
            !facts("pixel-7", "armv8.2_2").is_unused("i8mm"),
            "it has none"
        );
    }

    #[test]
    fn a_test_is_its_middle_and_its_ends() {
        let roofline = Roofline {
            bytes_per_token: 1,
            tokens_per_second: 40.0,
        };
        let test = Test::of("tg64".into(), &[12.0, 10.0, 9.0], Some(roofline)).expect("a test");
        assert_eq!(
            (test.least, test.tokens_per_second, test.most),
            (9.0, 10.0, 12.0)
        );
        assert_eq!(test.of_roofline(), Some(0.25));
        let prompts = Test::of("pp512".into(), &[1.0], None).expect("a test");
        assert_eq!(prompts.of_roofline(), None);
        assert_eq!(Test::of("pp512".into(), &[], None), None);
    }
}
