//! Refuses contexts that the machine has no memory for, with the number that would do. llama.cpp itself does not look.

use super::Sizes;
use crate::worker::decoder::LoadError;
use llama_cpp_2::model::LlamaModel;

/// Compares what the context will allocate (KV cells in F16 and logits of a whole batch in F32) with available memory.
pub(super) fn check(model: &LlamaModel, sizes: &Sizes) -> Result<(), LoadError> {
    let Some(available) = available() else {
        return Ok(());
    };
    let per_cell = bytes_per_cell(model).max(1);
    let logits = u64::from(sizes.batch) * u64::try_from(model.n_vocab()).unwrap_or(0) * 4;
    let cells = u64::from(sizes.context.get());
    let needed = per_cell * cells + logits;
    if needed <= available {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    let sequences = u64::from(sizes.sequences);
    let fitting = available.saturating_sub(logits) / per_cell / sequences / 256 * 256 * sequences;
    Err(LoadError(format!(
        "--ctx-size {cells} needs {} MiB for the KV cache and {} MiB for a batch of {}, but {} MiB of memory are available: \
         use --ctx-size {fitting} or less",
        mib(per_cell * cells),
        mib(logits),
        sizes.batch,
        mib(available),
    )))
}

/// Bytes of a token's keys and values in F16, all layers: an upper bound where layers have a sliding window.
fn bytes_per_cell(model: &LlamaModel) -> u64 {
    let number = |key: &str| -> Option<u64> {
        let architecture = model.meta_val_str("general.architecture").ok()?;
        model
            .meta_val_str(&format!("{architecture}.{key}"))
            .ok()?
            .parse()
            .ok()
    };
    let heads = u64::from(model.n_head().max(1));
    let head = u64::try_from(model.n_embd()).unwrap_or(0) / heads;
    let key = number("attention.key_length").unwrap_or(head);
    let value = number("attention.value_length").unwrap_or(head);
    u64::from(model.n_layer()) * u64::from(model.n_head_kv()) * (key + value) * 2
}

/// Bytes of memory that can be had without swapping (`MemAvailable`), within the cgroup's limit if it has one.
fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let machine = kibibytes << 10;
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    // The page cache counts as used by the group, but makes room when it must.
    let cached = || {
        let stat = read("memory.stat")?;
        let line = stat.lines().find_map(|line| line.strip_prefix("file "))?;
        line.trim().parse::<u64>().ok()
    };
    let used = || {
        number("memory.current")
            .unwrap_or(0)
            .saturating_sub(cached().unwrap_or(0))
    };
    let group = number("memory.max").map(|most| most.saturating_sub(used()));
    Some(group.map_or(machine, |group| group.min(machine)))
}
