//! What one cell of the KV cache takes, layer by layer, and which layers keep only a window.
//!
//! Source: `load_hparams` and `create_memory` of llama-model.cpp, `load_arch_hparams` of src/models/*.cpp, llama-hparams.cpp,
//! llama-kv-cache(-iswa).cpp and llama-memory-recurrent.cpp of the pinned llama.cpp.
//!
//! Estimates are upper ones where we do not know better: an architecture whose windows are not listed here keeps everything, and a
//! hybrid one holds cells and states in all layers.

use crate::engine::CacheType;
use crate::models::gguf::Gguf;

/// `LLAMA_MAX_LAYERS`.
const MOST_LAYERS: u64 = 512;
/// States of recurrent layers are 32-bit floats.
const STATE_NUMBER: u64 = 4;

/// What the cache takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cells {
    /// Bytes of a cell in all layers that keep everything.
    pub(super) full: u64,
    /// Bytes of a cell in all layers that keep a window.
    pub(super) windowed: u64,
    /// How far back those see, in tokens.
    pub(super) window: u64,
    /// Bytes of a sequence's state, whatever its length.
    pub(super) state: u64,
}

impl Cells {
    pub(super) fn of(model: &Gguf, cache_type: CacheType) -> Self {
        let layers = layers(model);
        let window = Window::of(model, layers);
        let mut cells = Self {
            window: window.as_ref().map_or(0, |window| window.width),
            state: state(model).saturating_mul(u64::from(layers)),
            ..Self::default()
        };
        for layer in 0..layers.min(with_own_cells(model, layers)) {
            let windowed = window.as_ref().is_some_and(|window| window.covers(layer));
            let sum = if windowed {
                &mut cells.windowed
            } else {
                &mut cells.full
            };
            *sum = sum.saturating_add(cell(model, layer, windowed, cache_type));
        }
        cells
    }
}

/// Layers that decode, without those that predict further tokens.
fn layers(model: &Gguf) -> u32 {
    let all = model.setting("block_count").unwrap_or(0);
    let further = model.setting("nextn_predict_layers").unwrap_or(0);
    let layers = all.saturating_sub(further).min(MOST_LAYERS);
    u32::try_from(layers).unwrap_or(0)
}

/// The layers from this one on use the cells of earlier ones.
fn with_own_cells(model: &Gguf, layers: u32) -> u32 {
    match model.architecture() {
        "gemma3n" => 20,
        "gemma4" => {
            let shared = model.setting("attention.shared_kv_layers").unwrap_or(0);
            layers.saturating_sub(u32::try_from(shared).unwrap_or(0))
        }
        _ => layers,
    }
}

/// Bytes of a cell's keys and values in one layer.
fn cell(model: &Gguf, layer: u32, windowed: bool, cache_type: CacheType) -> u64 {
    let heads = model.layer_setting("attention.head_count", layer);
    let heads = heads.unwrap_or(0);
    let kv_heads = model.layer_setting("attention.head_count_kv", layer);
    let first_heads = model.layer_setting("attention.head_count", 0).unwrap_or(0);
    let width = model.setting("embedding_length").unwrap_or(0);
    let length = |key: &str| {
        let own = windowed.then(|| model.setting(&format!("attention.{key}_length_swa")));
        own.flatten()
            .or_else(|| model.setting(&format!("attention.{key}_length")))
            .unwrap_or_else(|| width.checked_div(first_heads).unwrap_or(0))
    };
    let kv_heads = kv_heads.unwrap_or(heads);
    let bytes = |length: u64| cache_type.bytes_of(length.saturating_mul(kv_heads));
    // With latent attention the keys hold the values.
    let values = match model.setting("attention.key_length_mla") {
        Some(_) => 0,
        None => bytes(length("value")),
    };
    bytes(length("key")).saturating_add(values)
}

/// The length of a head that can't be stored so, if there is one: blocks don't reach over the ends of rows.
pub(super) fn uneven_head(model: &Gguf, cache_type: CacheType) -> Option<u64> {
    let heads = model.layer_setting("attention.head_count", 0).unwrap_or(0);
    let width = model.setting("embedding_length").unwrap_or(0);
    let usual = width.checked_div(heads).unwrap_or(0);
    let keys = [
        "key_length",
        "value_length",
        "key_length_swa",
        "value_length_swa",
    ];
    let told = keys.map(|key| model.setting(&format!("attention.{key}")));
    let [key, value, windowed_keys, windowed_values] = told;
    let lengths = [
        key.unwrap_or(usual),
        value.unwrap_or(usual),
        windowed_keys.unwrap_or(0),
        windowed_values.unwrap_or(0),
    ];
    let mut lengths = lengths.into_iter();
    lengths.find(|length| !length.is_multiple_of(cache_type.block_numbers()))
}

/// Bytes of the cache that decoding a token reads when so many tokens are before it: all layers' cells of those that it sees, and states.
pub fn cache_bytes_read(model: &Gguf, cache_type: CacheType, depth: u64) -> u64 {
    let cells = Cells::of(model, cache_type);
    let seen = depth.min(cells.window);
    let full = cells.full.saturating_mul(depth);
    full.saturating_add(cells.windowed.saturating_mul(seen))
        .saturating_add(cells.state)
}

/// Bytes of a sequence's state in one recurrent layer, 0 where there are none: RWKV, short convolutions, Mamba and its like.
fn state(model: &Gguf) -> u64 {
    let width = model.setting("embedding_length").unwrap_or(0);
    let numbers = if let Some(head) = model.setting("wkv.head_size") {
        let shift = model.setting("token_shift_count").unwrap_or(2);
        width.saturating_mul(head.saturating_add(shift))
    } else if let Some(length) = model.setting("shortconv.l_cache") {
        width.saturating_mul(length)
    } else if let Some(inner) = model.setting("ssm.inner_size") {
        let ssm = |key| model.setting(key).unwrap_or(0);
        let states = ssm("ssm.state_size");
        let groups = ssm("ssm.group_count").saturating_mul(states);
        let convolved = inner.saturating_add(groups.saturating_mul(2));
        let kernel = ssm("ssm.conv_kernel").saturating_sub(1);
        let convolution = kernel.saturating_mul(convolved);
        convolution.saturating_add(states.saturating_mul(inner))
    } else {
        0
    };
    numbers.saturating_mul(STATE_NUMBER)
}

/// Which layers see only the last tokens.
struct Window {
    width: u64,
    covered: Vec<bool>,
}

impl Window {
    fn covers(&self, layer: u32) -> bool {
        self.covered.get(layer as usize).copied().unwrap_or(false)
    }

    fn of(model: &Gguf, layers: u32) -> Option<Self> {
        let (width, period, full_first) = rule(model, layers)?;
        let key = format!("{}.attention.sliding_window_pattern", model.architecture());
        let covered = if let Some(pattern) = model.numbers(&key) {
            pattern.iter().map(|covered| covered != 0).collect()
        } else {
            let period = match model.number(&key) {
                Some(period) => u32::try_from(period).unwrap_or(u32::MAX),
                None => period?,
            };
            let full = |layer: u32| match (period, full_first) {
                (0, _) => false,
                (period, true) => layer.is_multiple_of(period),
                (period, false) => layer % period == period - 1,
            };
            (0..layers).map(|layer| !full(layer)).collect()
        };
        Some(Self { width, covered })
    }
}

/// Width of the window, every how many layers there is one without, and whether that is the first of them instead of the last; by
/// architecture.
fn rule(model: &Gguf, layers: u32) -> Option<(u64, Option<u32>, bool)> {
    let told = model
        .setting("attention.sliding_window")
        .filter(|width| *width > 0);
    let every = |width: Option<u64>, period, full_first| Some((width?, Some(period), full_first));
    match model.architecture() {
        "gemma2" => every(told.or(Some(4096)), 2, false),
        "gpt-oss" => every(told, 2, false),
        "gemma3n" => every(told, 5, false),
        "gemma3" => every(told, 6, false),
        "plamo3" => every(told, 8, false),
        "cohere2" | "olmo2" | "afmoe" | "mellum" | "muse-glimmer" => every(told, 4, false),
        "cohere2moe" | "laguna" => every(told, 4, true),
        "exaone-moe" => every(told.or(Some(128)), 4, false),
        "exaone4" if layers == 64 => every(told.or(Some(4096)), 4, false),
        "smallthinker" => every(told.map(|_| 4096), 4, true),
        "llama4" if model.setting("attention.sliding_window") != Some(0) => {
            every(Some(8192), 4, false)
        }
        // Only as their files say, layer by layer.
        "gemma4" | "step35" | "mimo2" | "spark2_5" | "granite_swa" | "maple" => {
            Some((told?, None, false))
        }
        _ => None,
    }
}
