//! Whether the server still wants new clients.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Running until told to drain, which can't be taken back. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    draining: Arc<OnceLock<Instant>>,
}

impl Lifecycle {
    /// From now on the server is not ready. Requests are answered until the engine refuses them.
    pub fn drain(&self) {
        // The first call counts.
        let _ = self.draining.set(Instant::now());
    }

    /// Whether it drains.
    pub fn is_draining(&self) -> bool {
        self.draining.get().is_some()
    }
}
