//! From a body to a request that can't be wrong.

use super::super::super::error::ApiError;
use super::super::super::fields::{Fields, wrong_type};
use super::super::super::json;
use super::FIELDS;
use crate::engine::{EngineError, Message, Prompt, Request, Role, Sampling};
use crate::models::SamplingDefaults;
use serde_json::Value;

/// Tokens of an answer when a request names no number: a page of text.
const DEFAULT_MAX_TOKENS: u32 = 1024;
/// Tokens that penalties look at when a request names no number, as in llama.cpp.
const DEFAULT_REPEAT_LAST_N: u32 = 64;
const MOST_REPEAT_LAST_N: u32 = 65_536;
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 256;
const LONGEST_DEADLINE_MS: u64 = 24 * 60 * 60 * 1000;
/// A larger body is parsed beside the runtime's threads, where it holds nobody up.
const PARSE_INLINE: usize = 256 << 10;

/// What was asked, checked. What is `None` is up to the model.
#[derive(Debug, Default, PartialEq)]
pub(super) struct TextRequest {
    pub(super) model: Option<String>,
    pub(super) stream: Option<bool>,
    messages: Vec<Message>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<u32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    seed: Option<u64>,
    stop: Vec<String>,
    max_tokens: u32,
    ignore_eos: bool,
    cache_prompt: bool,
    deadline_ms: Option<u64>,
}

/// Parses a body.
pub(super) async fn parse(body: Vec<u8>) -> Result<TextRequest, ApiError> {
    if body.len() <= PARSE_INLINE {
        return TextRequest::parse(&body);
    }
    let parsed = tokio::task::spawn_blocking(move || TextRequest::parse(&body));
    parsed.await.unwrap_or_else(|error| {
        tracing::error!(%error, "parsing a body failed");
        Err(ApiError::from(&EngineError::Internal(error.to_string())))
    })
}

impl TextRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut known: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
        known.extend(["prompt", "image", "captureConfig"]);
        let mut fields = Fields::new(json::parse_object(body, &known)?);
        no_pictures(&mut fields)?;
        Ok(Self {
            model: fields.string("model")?,
            stream: fields.boolean("stream")?,
            messages: messages(&mut fields)?,
            temperature: fields.number("temperature", 0.0..=100.0)?,
            top_k: at_most(fields.whole("topK", 0)?, u32::MAX),
            top_p: fields.number("topP", 0.0..=1.0)?,
            min_p: fields.number("minP", 0.0..=1.0)?,
            // The engine divides by it.
            repeat_penalty: fields.number("repeatPenalty", 0.01..=100.0)?,
            repeat_last_n: at_most(fields.whole("repeatLastN", 0)?, MOST_REPEAT_LAST_N),
            frequency_penalty: fields.number("frequencyPenalty", -100.0..=100.0)?,
            presence_penalty: fields.number("presencePenalty", -100.0..=100.0)?,
            seed: seed(&mut fields)?,
            stop: stop(&mut fields)?,
            max_tokens: at_most(fields.whole("maxTokens", 1)?, i32::MAX.cast_unsigned())
                .unwrap_or(DEFAULT_MAX_TOKENS),
            ignore_eos: fields.boolean("ignoreEos")?.unwrap_or(false),
            cache_prompt: fields.boolean("cachePrompt")?.unwrap_or(true),
            deadline_ms: fields
                .whole("deadlineMs", 1)?
                .map(|ms| ms.min(LONGEST_DEADLINE_MS)),
        })
    }

    /// A short answer to one prompt.
    pub(super) fn test(prompt: String, max_tokens: u32) -> Self {
        Self {
            messages: vec![Message::new(Role::User, prompt)],
            max_tokens,
            cache_prompt: true,
            ..Self::default()
        }
    }

    /// The engine's request, with the model's values where none was asked for.
    pub(super) fn into_engine(self, model: &SamplingDefaults, client: &str) -> Request {
        Request {
            sampling: Sampling {
                temperature: self.temperature.unwrap_or(model.temperature),
                top_k: self.top_k.unwrap_or(model.top_k),
                top_p: self.top_p.unwrap_or(model.top_p),
                min_p: self.min_p.unwrap_or(model.min_p),
                repeat_penalty: self.repeat_penalty.unwrap_or(model.repeat_penalty),
                repeat_last_n: self.repeat_last_n.unwrap_or(DEFAULT_REPEAT_LAST_N),
                frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
                presence_penalty: self.presence_penalty.unwrap_or(0.0),
                logit_bias: Vec::new(),
                seed: self.seed.unwrap_or_else(Sampling::random_seed),
            },
            stop: self.stop,
            max_tokens: Some(self.max_tokens),
            ignore_eos: self.ignore_eos,
            cache_prompt: self.cache_prompt,
            deadline_ms: self.deadline_ms,
            ..Request::new(client, Prompt::Messages(self.messages))
        }
    }
}

fn at_most(value: Option<u64>, most: u32) -> Option<u32> {
    value.map(|value| u32::try_from(value).unwrap_or(u32::MAX).min(most))
}

fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    match fields.any("seed") {
        // llama.cpp's way to ask for a random one.
        Some(value) if value.as_i64() == Some(-1) => Ok(None),
        Some(value) => {
            Fields::new([("seed".to_owned(), value)].into_iter().collect()).whole("seed", 0)
        }
        None => Ok(None),
    }
}

fn no_pictures(fields: &mut Fields) -> Result<(), ApiError> {
    let image = fields
        .string("image")?
        .is_some_and(|image| !image.is_empty());
    if image || fields.any("captureConfig").is_some() {
        return Err(ApiError::bad_request("this model reads text only")
            .details("leave out `image` and `captureConfig`"));
    }
    Ok(())
}

/// The chat: `system`, the turns of `messages`, and `text` as the latest turn.
fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let text = fields.string("text")?.filter(|text| !text.is_empty());
    let prompt = fields.string("prompt")?.filter(|text| !text.is_empty());
    let system = fields.string("system")?.filter(|text| !text.is_empty());
    let turns = match fields.any("messages") {
        None => Vec::new(),
        Some(Value::Array(turns)) => turns.into_iter().map(turn).collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong_type("messages", "a list", &other)),
    };
    if system.is_some() && turns.iter().any(|turn| turn.role == Role::System) {
        return Err(ApiError::bad_request(
            "give either `system` or a system message, not both",
        ));
    }
    let says = |role| move |content: String| Message::new(role, content);
    let system = system.map(says(Role::System));
    let latest = text.or(prompt).map(says(Role::User));
    let chat: Vec<Message> = system.into_iter().chain(turns).chain(latest).collect();
    match chat.last() {
        Some(last) if last.role == Role::User && !last.content.is_empty() => Ok(chat),
        Some(last) if last.role == Role::Assistant => Err(ApiError::bad_request(
            "the latest turn must be the user's: give `text`",
        )),
        _ => Err(ApiError::bad_request("there is no text to answer")
            .details("give a non-empty `text`, such as {\"text\":\"hello\"}")),
    }
}

fn turn(value: Value) -> Result<Message, ApiError> {
    let Value::Object(object) = value else {
        return Err(wrong_type("messages", "a list of objects", &value));
    };
    let mut fields = Fields::new(object);
    let role = match fields.string("role")?.as_deref() {
        Some("system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        _ => {
            return Err(ApiError::bad_request(
                "`role` must be system, user or assistant",
            ));
        }
    };
    let content = fields.string("content")?;
    let content = content.ok_or_else(|| ApiError::bad_request("`content` is missing"))?;
    Ok(Message::new(role, content))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.any("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) => {
            let text = |stop| match stop {
                Value::String(stop) => Ok(stop),
                other => Err(wrong_type("stop", "a list of strings", &other)),
            };
            // Not more are looked at than may be there, and one more to see that.
            stops
                .into_iter()
                .take(MOST_STOPS + 1)
                .map(text)
                .collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong_type("stop", "a string or a list of strings", &other)),
    };
    if stops.len() > MOST_STOPS {
        return Err(ApiError::bad_request(format!(
            "`stop` may hold {MOST_STOPS} strings at most"
        )));
    }
    if stops
        .iter()
        .any(|stop| !(1..=LONGEST_STOP).contains(&stop.len()))
    {
        return Err(ApiError::bad_request(format!(
            "each string of `stop` must have 1 to {LONGEST_STOP} bytes"
        )));
    }
    Ok(stops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(body: &Value) -> Result<TextRequest, ApiError> {
        TextRequest::parse(body.to_string().as_bytes())
    }

    fn latest(body: &Value) -> String {
        parse(body).unwrap().messages.pop().unwrap().content
    }

    #[test]
    fn text_and_prompt_are_the_same_field() {
        assert_eq!(latest(&json!({"text": "a"})), "a");
        assert_eq!(latest(&json!({"prompt": " b "})), " b ");
        assert_eq!(latest(&json!({"text": "a", "prompt": "b"})), "a");
        assert_eq!(latest(&json!({"text": "", "prompt": "b"})), "b");
        assert_eq!(latest(&json!({"text": null, "prompt": "b"})), "b");
    }

    #[test]
    fn numbers_are_taken_as_they_come() {
        let asked = parse(&json!({
            "text": "a", "temperature": 1, "topK": 40.0, "topP": 0, "maxTokens": 1e30, "seed": u64::MAX,
            "repeatLastN": 1e9, "deadlineMs": 1e15, "unknown": [1]
        }));
        let asked = asked.unwrap();
        assert_eq!(asked.temperature, Some(1.0));
        assert_eq!(asked.top_k, Some(40));
        assert_eq!(asked.top_p, Some(0.0));
        assert_eq!(asked.max_tokens, i32::MAX.cast_unsigned());
        assert_eq!(asked.seed, Some(u64::MAX));
        assert_eq!(asked.repeat_last_n, Some(MOST_REPEAT_LAST_N));
        assert_eq!(asked.deadline_ms, Some(LONGEST_DEADLINE_MS));
        let nulls =
            json!({"text": "a", "temperature": null, "topK": null, "stop": null, "image": null});
        let asked = parse(&nulls).unwrap();
        assert_eq!(asked, parse(&json!({"text": "a", "seed": -1})).unwrap());
        assert_eq!(asked.max_tokens, DEFAULT_MAX_TOKENS);
    }

    #[test]
    fn chats_are_put_together() {
        use Role::{Assistant, System, User};
        let turns =
            json!([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]);
        let asked = parse(&json!({"system": "s", "messages": turns, "text": "3"})).unwrap();
        let roles: Vec<_> = asked.messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [System, User, Assistant, User]);
        assert!(parse(&json!({"messages": turns})).is_err());
    }
}
