//! Bodies read as their endpoints read them, without a server: for whoever wants to know what a body asks for, and for fuzzers.

use super::error::ApiError;
use super::{openai, phone};
use crate::engine::Request;
use crate::models::SamplingDefaults;

/// What a body asks of a model with these defaults, or the status and the sentence of its refusal. Nobody is asked. `None`
/// for a path at which no model answers.
pub fn read_body(
    path: &str,
    body: &[u8],
    model: &SamplingDefaults,
) -> Option<Result<Vec<Request>, (u16, String)>> {
    let read = match path {
        phone::text::PATH => phone::text::read(body, model),
        openai::chat::PATH => openai::chat::read(body, model),
        openai::completions::PATH => openai::completions::read(body, model),
        openai::responses::PATH => openai::responses::read(body, model),
        _ => return None,
    };
    Some(read.map_err(|error: ApiError| (error.code().status().as_u16(), error.text().to_owned())))
}
