//! The HTTP layer from outside: a real server on a free port, raw sockets, and a worker that follows a script.

#![expect(clippy::unwrap_used, reason = "the helpers are tests too")]

#[path = "../support/mod.rs"]
mod support;

mod admission;
mod foreign;
mod limits;
mod models;
mod openai;
mod openapi;
mod router;
mod state;
mod strangers;
mod stream;
mod text;
