//! The whole program from outside: the real binary with a real model, asked over HTTP, signalled and probed as a person at a
//! terminal and as Kubernetes would.

#![cfg(feature = "llama")]
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../support/client.rs"]
mod client;
#[path = "../support/models.rs"]
mod models;
#[path = "../support/program.rs"]
mod program;
mod server;

mod answers;
mod cores;
mod crowds;
mod drain;
mod faults;
mod first;
mod help;
mod isolation;
mod memory;
mod outages;
mod quota;
mod readers;
mod settings;
mod terminal;

// The client waits as long as we do.
use program::within;
