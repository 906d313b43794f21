//! What a template takes, found out by trying it: a system role, tools, and how it writes calls.
//!
//! A template that lists tools, but writes calls in a form that we could not read in an answer, counts as one that knows
//! none: its model gets our own description of them instead.

use super::PROBE;
use super::chat::{Call, Chat, Turn};
use super::jinja::Jinja;
use crate::engine::{Role, Tool};
use crate::worker::tools::{Key, OPEN, Syntax};
use serde_json::json;

/// Texts that no template has.
const INSTRUCTION: &str = "pocket-llm probes the system role";
const TOOL: &str = "pocket_llm_probe";
const ARGUMENT: &str = "pocket-llm probes an argument";
const RESULT: &str = "pocket-llm probes a result";
/// Some templates want nine letters and digits.
const CALL_ID: &str = "call00001";

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Knows {
    pub(super) system: bool,
    /// How calls are written, if it knows tools.
    pub(super) tools: Option<Syntax>,
}

impl Knows {
    /// Tries a template: a few renderings of short chats.
    pub(super) fn learn(jinja: &Jinja) -> Self {
        let user = || Turn::new(Role::User, PROBE);
        let shows = |turns, text| {
            let shown = jinja.render(&Chat::of(turns));
            shown.is_ok_and(|shown| shown.contains(text))
        };
        let with_system = vec![Turn::new(Role::System, INSTRUCTION), user()];
        Self {
            // One that takes no lone message of the user either was not understood: it is left alone.
            system: shows(with_system, INSTRUCTION) || !shows(vec![user()], PROBE),
            tools: syntax(jinja),
        }
    }
}

fn syntax(jinja: &Jinja) -> Option<Syntax> {
    let with_tools = |turns| Chat {
        tools: vec![Tool {
            name: TOOL.into(),
            description: Some("Probes".into()),
            parameters: Some(json!({"type": "object", "properties": {"text": {"type": "string"}}})),
        }],
        ..Chat::of(turns)
    };
    let asked = vec![Turn::new(Role::User, PROBE)];
    let call = Call {
        id: CALL_ID.into(),
        name: TOOL.into(),
        arguments: json!({"text": ARGUMENT}),
    };
    let called = [
        Turn {
            calls: vec![call],
            ..Turn::new(Role::Assistant, "")
        },
        Turn {
            call_id: Some(CALL_ID.into()),
            tool: Some(TOOL.into()),
            ..Turn::new(Role::Tool, RESULT)
        },
    ];
    let answered = [asked.as_slice(), &called].concat();
    let before = jinja.render(&with_tools(asked)).ok()?;
    let after = jinja.render(&with_tools(answered)).ok()?;
    if before.contains(TOOL) && after.contains(RESULT) {
        written(&before, &after)
    } else {
        None
    }
}

/// How the call is written in `after`, which goes on where `before` lets the model speak.
fn written(before: &str, after: &str) -> Option<Syntax> {
    let argument = after.rfind(ARGUMENT)?;
    let object = after[..argument].rfind(&format!("{{\"name\": \"{TOOL}\""))?;
    let keys = &after[object..argument];
    let key = [Key::Arguments, Key::Parameters]
        .into_iter()
        .find(|key| keys.contains(&format!("\", \"{}\": {{", key.text())))?;
    let lead = after[..object].trim_end();
    if lead.ends_with(OPEN) {
        return (key == Key::Arguments).then_some(Syntax::Tagged);
    }
    // The model may be made to think first, which an earlier turn does not show.
    let shared = before
        .bytes()
        .zip(after.bytes())
        .take_while(|(before, after)| before == after)
        .count();
    (shared >= lead.len()).then_some(Syntax::Bare(key))
}
