//! The part that computes.

pub mod decoder;
pub mod sampling;
pub mod text;
