//! Downloads from a hub on this machine that fails in every way we know: cut, corrupted, killed, lied to, kept waiting.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod answers;
mod disk;
mod faults;
mod hub;
mod model;
mod program;
mod queue;
mod tokens;
