//! Families of models, from `models/families.toml`, which is compiled in.

use crate::engine::ModelInfo;
use serde::Deserialize;
use std::sync::LazyLock;

/// What models of one family have in common.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Its name in this program.
    pub id: String,
    architectures: Option<Vec<String>>,
    names: Option<Vec<String>>,
    licences: Option<Vec<String>>,
    /// Temperature where a request names none.
    pub temperature: f32,
    /// Top-k where a request names none.
    pub top_k: u32,
    /// Top-p where a request names none.
    pub top_p: f32,
    /// The sentence that the licence wants beside answers.
    pub licence_notice: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Families {
    family: Vec<Family>,
    default: Family,
}

static FAMILIES: LazyLock<Families> = LazyLock::new(|| {
    toml::from_str(include_str!("../../models/families.toml"))
        .expect("the compiled-in families parse, as a test checks")
});

impl Family {
    /// The family of a model.
    pub fn of(info: &ModelInfo) -> &'static Self {
        let mut families = FAMILIES.family.iter();
        families
            .find(|family| family.has(info))
            .unwrap_or(&FAMILIES.default)
    }

    fn has(&self, info: &ModelInfo) -> bool {
        let holds = |rule: &Option<Vec<String>>, value: &str| {
            let value = value.to_lowercase();
            rule.as_ref()
                .is_none_or(|patterns| patterns.iter().any(|pattern| matches(pattern, &value)))
        };
        holds(&self.architectures, &info.architecture)
            && holds(&self.names, info.name.as_deref().unwrap_or_default())
            && holds(&self.licences, info.licence.as_deref().unwrap_or_default())
    }
}

/// Whether a lower-case value matches a pattern with `*` at its start, its end, both or neither.
fn matches(pattern: &str, value: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(_), Some(_)) => value.contains(pattern.trim_matches('*')),
        (Some(end), None) => value.ends_with(end),
        (None, Some(start)) => value.starts_with(start),
        (None, None) => value == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_parses_and_its_values_make_sense() {
        for family in FAMILIES.family.iter().chain([&FAMILIES.default]) {
            assert!((0.0..=2.0).contains(&family.temperature), "{}", family.id);
            assert!((0.0..=1.0).contains(&family.top_p), "{}", family.id);
        }
    }

    #[test]
    fn models_find_their_family() {
        let table = [
            ("gemma3", Some("Gemma 3 1B It"), Some("gemma"), "gemma"),
            ("gemma3n", None, None, "gemma"),
            ("gemma4", None, Some("apache-2.0"), "gemma-open"),
            (
                "qwen2",
                Some("Qwen2.5 1.5B Instruct"),
                Some("apache-2.0"),
                "qwen",
            ),
            ("qwen3moe", None, None, "qwen"),
            (
                "llama",
                Some("SmolLM2 135M Instruct"),
                Some("apache-2.0"),
                "smollm2",
            ),
            (
                "llama",
                Some("Llama 3.2 1B Instruct"),
                Some("llama3.2"),
                "llama",
            ),
            ("llama", Some("Meta-Llama-3-8B"), None, "llama-unstated"),
            ("llama", Some("Llama-like"), Some("apache-2.0"), "default"),
            ("llama", Some("TinyLlama 1.1B"), None, "default"),
            ("mamba", None, None, "default"),
        ];
        for (architecture, name, licence, family) in table {
            let info = ModelInfo {
                architecture: architecture.into(),
                name: name.map(Into::into),
                licence: licence.map(Into::into),
                ..ModelInfo::default()
            };
            assert_eq!(Family::of(&info).id, family, "{architecture} {name:?}");
        }
    }
}
