//! Jinja as the publishers' own library sets it up for chat templates: what a template sees here is what it was written
//! and tested for.
//!
//! A template comes with the model's file, so it is input. It can neither loop for ever nor fill the memory: every
//! instruction and every byte that it makes costs fuel, and its output is bounded besides. Lists put into lists, as deep as the
//! fuel allows, are dropped and written by recursion, so a rendering has a thread of its own with a stack for that.

use super::chat::{Chat, Turn};
use super::describe::function;
use super::json::{tojson, value};
use super::strftime::strftime;
use crate::engine::Role;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use minijinja_contrib::pycompat::unknown_method_callback;
use std::io;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

/// What error messages call the template.
const NAME: &str = "model";
/// Fuel of a rendering, whatever the chat: one for each instruction and for each 64 bytes made. Known templates take under
/// a thousand for a short chat. This is also what bounds the memory that a template can fill, here to 16 MB.
const FUEL: u64 = 250_000;
/// Fuel for each message; known templates take up to 60.
const FUEL_PER_MESSAGE: u64 = 500;
/// Bytes of stack for all that does not grow with the fuel, and for each unit of it. Only what is used becomes memory.
const STACK: u64 = 8 << 20;
const STACK_PER_FUEL: u64 = if cfg!(fuzzing) { 2048 } else { 256 };
/// Fuel for each so many bytes of the messages, which lets a template make 16 copies of them; our own make three.
const BYTES_PER_FUEL: u64 = 4;
/// The prompt may be this many times as long as the messages…
const MAX_GROWTH: usize = 4;
/// …with so much around each of them…
const MESSAGE_FRAME: usize = 256;
/// …and this much besides: instructions and tool descriptions that a template brings along.
const MAX_FRAME: usize = 1 << 20;

/// A compiled template.
pub(super) struct Jinja {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

/// Why a template gave no text.
#[derive(Debug)]
pub(super) enum Failure {
    /// It called `raise_exception` with this text.
    Refused(String),
    /// It is at fault, or too costly.
    Failed(String),
}

impl Jinja {
    pub(super) fn compile(
        source: &str,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_debug(false);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, normalize(source))
            .map_err(|error| error.to_string())?;
        Ok(Self {
            environment,
            bos: bos.map(Into::into),
            eos: eos.map(Into::into),
        })
    }

    /// Renders a chat up to the point where the model speaks.
    pub(super) fn render(&self, chat: &Chat) -> Result<String, Failure> {
        let (bytes, turns) = (chat.bytes() as u64, chat.turns.len() as u64);
        let fuel = FUEL
            .saturating_add(FUEL_PER_MESSAGE.saturating_mul(turns))
            .saturating_add(bytes / BYTES_PER_FUEL);
        let stack = STACK.saturating_add(STACK_PER_FUEL.saturating_mul(fuel));
        let stack = usize::try_from(stack).unwrap_or(usize::MAX);
        thread::scope(|scope| {
            let rendering = thread::Builder::new()
                .name("template".into())
                .stack_size(stack)
                .spawn_scoped(scope, || self.render_with(fuel, chat))
                .map_err(|error| Failure::Failed(format!("there is no thread for it: {error}")))?;
            rendering
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn render_with(&self, fuel: u64, chat: &Chat) -> Result<String, Failure> {
        let (bytes, turns) = (chat.bytes(), chat.turns.len());
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let limit = (MAX_GROWTH.saturating_mul(bytes))
            .saturating_add(MESSAGE_FRAME.saturating_mul(turns))
            .saturating_add(MAX_FRAME);
        let mut out = Bounded {
            bytes: Vec::with_capacity(bytes + 1024),
            limit,
        };
        let template = environment
            .get_template(NAME)
            .map_err(|error| Failure::from(&error))?;
        template
            .render_captured_to(self.variables(chat), &mut out)
            .map_err(|error| Failure::from(&error))?;
        String::from_utf8(out.bytes).map_err(|error| Failure::Failed(error.to_string()))
    }

    /// The names that a template may ask for. There is a `tools` of none where there are no tools; a model without a
    /// begin-of-sequence token has no `bos_token` at all.
    fn variables(&self, chat: &Chat) -> Value {
        let special = [("bos_token", &self.bos), ("eos_token", &self.eos)];
        let special = special
            .into_iter()
            .filter_map(|(name, text)| Some((name, Value::from(text.as_deref()?))));
        let tools = chat.tools.iter().map(|tool| {
            Value::from_pairs([("type", "function".into()), ("function", function(tool))])
        });
        let tools = match chat.tools.as_slice() {
            [] => Value::from(()),
            _ => tools.collect(),
        };
        let fixed = [
            ("messages", chat.turns.iter().map(message).collect()),
            ("add_generation_prompt", true.into()),
            ("tools", tools),
            ("documents", Value::from(())),
        ];
        Value::from_pairs(fixed.into_iter().chain(special))
    }
}

/// A message with the keys that it has in the publishers' own library: templates ask whether there are any others.
fn message(turn: &Turn) -> Value {
    let mut pairs: Vec<(&str, Value)> = vec![
        ("role", role(turn.role).into()),
        ("content", turn.content.as_str().into()),
    ];
    if !turn.calls.is_empty() {
        let calls = turn.calls.iter().map(|call| {
            let function = Value::from_pairs([
                ("name", call.name.as_str().into()),
                ("arguments", value(&call.arguments)),
            ]);
            Value::from_pairs([
                ("id", call.id.as_str().into()),
                ("type", "function".into()),
                ("function", function),
            ])
        });
        pairs.push(("tool_calls", calls.collect()));
    }
    let of_call = [("name", &turn.tool), ("tool_call_id", &turn.call_id)];
    for (key, text) in of_call {
        pairs.extend(text.as_deref().map(|text| (key, text.into())));
    }
    Value::from_pairs(pairs)
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(cause) = source {
            if let Some(Refusal(text)) = cause.downcast_ref() {
                return Self::Refused(text.clone());
            }
            source = cause.source();
        }
        Self::Failed(match error.kind() {
            ErrorKind::OutOfFuel => "it does not come to an end".into(),
            ErrorKind::WriteFailure => "it writes too much".into(),
            _ => error.to_string(),
        })
    }
}

/// A template's own refusal, as the source of the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

#[expect(
    clippy::needless_pass_by_value,
    reason = "the engine hands a function its arguments by value"
)]
fn raise_exception(message: Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
}

fn strftime_now(format: &str) -> String {
    // A clock before 1970 is a clock that was never set.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    strftime(format, now.as_secs())
}

/// Makes line ends `\n`, as Jinja does before it reads a template, and takes `{% generation %}` for the plain scope that
/// it is outside of training.
fn normalize(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inside = &tag[..end];
        match inside.trim_matches(['-', '+', ' ', '\t', '\n']) {
            "generation" => out.push_str(&inside.replace("generation", "with")),
            "endgeneration" => out.push_str(&inside.replace("endgeneration", "endwith")),
            _ => out.push_str(inside),
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

/// Takes only so much.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if more.len() > self.limit - self.bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
