//! llama.cpp's log, which is the only place where it says why something failed, how large its buffers are, and which kernels
//! it chose. A `tracing` layer reads it there.

use std::sync::{Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// What the binding calls its events' target.
const TARGET: &str = "llama-cpp-2";
/// More lines are not kept.
const MOST: usize = 64;

static COLLECTED: Mutex<Collected> = Mutex::new(Collected {
    errors: Vec::new(),
    buffers: Vec::new(),
    kernels: Vec::new(),
});

struct Collected {
    errors: Vec<String>,
    buffers: Vec<(String, u64)>,
    kernels: Vec<String>,
}

/// The layer that reads llama.cpp's log. Without it a failed load has no reason and a model no buffer sizes.
#[derive(Clone, Copy, Debug, Default)]
pub struct LlamaLog;

impl<S: Subscriber> Layer<S> for LlamaLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == TARGET {
            let mut message = Message(String::new());
            event.record(&mut message);
            collect(*event.metadata().level(), message.0.trim());
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.0);
        }
    }
}

fn collect(level: Level, line: &str) {
    let mut collected = COLLECTED.lock().unwrap_or_else(PoisonError::into_inner);
    if level == Level::ERROR && collected.errors.len() < MOST {
        collected.errors.push(reason(line).to_owned());
    } else if let Some(buffer) = buffer(line) {
        if collected.buffers.len() < MOST {
            collected.buffers.push(buffer);
        }
    } else if let Some(kernel) = kernel(line)
        && !collected.kernels.iter().any(|known| known == kernel)
        && collected.kernels.len() < MOST
    {
        collected.kernels.push(kernel.to_owned());
    }
}

/// `function: text` → `text`
fn reason(line: &str) -> &str {
    match line.split_once(": ") {
        Some((function, text)) if !function.contains(' ') => text,
        _ => line,
    }
}

/// `load_tensors:   CPU_Mapped model buffer size =    93.42 MiB` → (`CPU_Mapped model`, bytes)
fn buffer(line: &str) -> Option<(String, u64)> {
    let (name, size) = reason(line).split_once("buffer size =")?;
    let mebibytes: f64 = size.trim().strip_suffix("MiB")?.trim().parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a size in a log line"
    )]
    let bytes = (mebibytes.max(0.0) * 1_048_576.0) as u64;
    Some((name.trim().to_owned(), bytes))
}

/// `repack: repack tensor blk.0.attn_q.weight with q4_0_8x8` → `q4_0_8x8`
fn kernel(line: &str) -> Option<&str> {
    line.contains("repack tensor")
        .then(|| line.rsplit_once(" with "))?
        .map(|(_, kernel)| kernel.trim())
}

/// Sends llama.cpp's log to `tracing`, once per process.
pub(super) fn connect() {
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default());
}

/// Forgets what an earlier load said.
pub(super) fn forget() {
    let mut collected = COLLECTED.lock().unwrap_or_else(PoisonError::into_inner);
    collected.errors.clear();
    collected.buffers.clear();
    collected.kernels.clear();
}

/// Error lines since [`forget`]; the useful one comes first: later ones only repeat that loading failed.
pub(super) fn errors() -> Vec<String> {
    let mut errors = COLLECTED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .errors
        .clone();
    errors.reverse();
    errors
}

/// Names and bytes of the buffers since [`forget`].
pub(super) fn buffers() -> Vec<(String, u64)> {
    COLLECTED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .buffers
        .clone()
}

/// Names of the repacked layouts since [`forget`].
pub(super) fn kernels() -> Vec<String> {
    COLLECTED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .kernels
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let line = "load_tensors:   CPU_Mapped model buffer size =    93.50 MiB";
        assert_eq!(buffer(line), Some(("CPU_Mapped model".into(), 98_041_856)));
        assert_eq!(buffer("llama_context: n_ctx = 512"), None);
        let line = "repack: repack tensor blk.0.attn_q.weight with q4_0_8x8";
        assert_eq!(kernel(line), Some("q4_0_8x8"));
        assert_eq!(
            reason("llama_model_load: error loading model: no"),
            "error loading model: no"
        );
    }
}
