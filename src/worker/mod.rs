//! The part that computes.

pub mod decoder;
