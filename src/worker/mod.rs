//! The part that computes.

pub mod decoder;
pub mod text;
