//! The phone API: the paths and shapes of local-android-ai, whose clients work unchanged.

pub(super) mod info;
mod machine;
pub(super) mod models;
pub(super) mod status;
pub(super) mod text;

/// The name in `server` fields.
const SERVER: &str = "pocket-llm";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Milliseconds since the epoch, as the phone API writes points in time.
fn epoch_ms(time: std::time::SystemTime) -> u64 {
    time.duration_since(std::time::UNIX_EPOCH)
        .map_or(0, super::tracked::millis)
}
