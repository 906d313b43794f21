//! One item of a response's output.

use serde_json::{Value, json};

/// One item of the output.
pub(super) struct Item {
    pub(super) id: String,
    pub(super) kind: Kind,
    /// What was said, thought, or given to a tool.
    pub(super) text: String,
    /// Of the tokens of a message, if they are wanted.
    pub(super) logprobs: Vec<Value>,
    pub(super) status: &'static str,
}

pub(super) enum Kind {
    Reasoning,
    Message,
    Call { call_id: String, name: String },
}

impl Kind {
    pub(super) fn prefix(&self) -> &'static str {
        match self {
            Self::Reasoning => "rs_",
            Self::Message => "msg_",
            Self::Call { .. } => "fc_",
        }
    }
}

impl Item {
    pub(super) fn is_open(&self) -> bool {
        self.status == "in_progress"
    }

    pub(super) fn goes_on(&self, kind: &Kind) -> bool {
        let same = matches!(
            (&self.kind, kind),
            (Kind::Reasoning, Kind::Reasoning) | (Kind::Message, Kind::Message)
        );
        same && self.is_open()
    }

    pub(super) fn part(&self) -> Option<Value> {
        match self.kind {
            Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": self.text})),
            Kind::Message => Some(json!({
                "type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs,
            })),
            Kind::Call { .. } => None,
        }
    }

    /// Before it has any part.
    pub(super) fn begun(&self) -> Value {
        let mut begun = self.whole();
        if let Some(content) = begun.get_mut("content") {
            *content = json!([]);
        }
        begun
    }

    pub(super) fn whole(&self) -> Value {
        let (id, status) = (&self.id, self.status);
        let content: Vec<Value> = self.part().into_iter().collect();
        match &self.kind {
            Kind::Reasoning => json!({
                "id": id, "type": "reasoning", "status": status, "summary": [], "content": content,
            }),
            Kind::Message => json!({
                "id": id, "type": "message", "status": status, "role": "assistant", "content": content,
            }),
            Kind::Call { call_id, name } => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name,
                "arguments": self.text,
            }),
        }
    }
}
