//! Tools: how calls are written, what holds the model to that, and how they are told from the rest of an answer.
//!
//! The prompt side, which describes tools and renders earlier calls, is in `prompt/`; it finds out which syntax a
//! model's template uses. Pure: no clock, no channel, no panic on any input.

mod plan;
mod split;

#[cfg(test)]
mod tests;

pub use plan::{ToolPlan, plan};
pub use split::CallSplitter;

/// Stands before a call in [`Syntax::Tagged`].
pub const OPEN: &str = "<tool_call>";
/// Stands behind it.
pub const CLOSE: &str = "</tool_call>";

/// How a model writes calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Syntax {
    /// `<tool_call>`, `{"name": …, "arguments": {…}}` on a line of its own, `</tool_call>`, anywhere behind the answer's
    /// text and as often as it likes: Hermes 2 Pro, Qwen 2.5 and 3, and what our own prompt asks for.
    #[default]
    Tagged,
    /// The whole answer is one object, `{"name": …, KEY: {…}}`: Llama 3.
    Bare(Key),
}

/// What an object that is a call names its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `arguments`.
    Arguments,
    /// `parameters`.
    Parameters,
}

impl Key {
    /// Its text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Arguments => "arguments",
            Self::Parameters => "parameters",
        }
    }
}
