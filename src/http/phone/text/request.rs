//! From a body to a request that can't be wrong.

use super::super::super::error::ApiError;
use super::super::super::schema::Body;
use super::FIELDS;
use crate::engine::{EngineError, Format, Message, Prompt, Request, Role, Sampling};
use crate::models::SamplingDefaults;
use serde_json::Value;

/// Tokens of an answer when a request names no number: a page of text.
const DEFAULT_MAX_TOKENS: u32 = 1024;
/// Tokens that penalties look at when a request names no number, as in llama.cpp.
const DEFAULT_REPEAT_LAST_N: u32 = 64;
const MOST_REPEAT_LAST_N: u32 = 65_536;
const LONGEST_DEADLINE_MS: u64 = 24 * 60 * 60 * 1000;
/// A larger body is parsed beside the runtime's threads, where it holds nobody up.
const PARSE_INLINE: usize = 256 << 10;

/// What was asked, checked. What is `None` is up to the model.
#[derive(Debug, Default, PartialEq)]
pub(super) struct TextRequest {
    pub(super) model: Option<String>,
    pub(super) stream: Option<bool>,
    messages: Vec<Message>,
    format: Option<Format>,
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
        let mut body = Body::parse_kindly(body, &[FIELDS], &["image", "captureConfig"])?;
        no_pictures(&mut body)?;
        Ok(Self {
            model: body.text("model"),
            stream: body.flag("stream"),
            messages: messages(&mut body)?,
            format: body.any("format").map(format),
            temperature: body.number("temperature"),
            top_k: body.count("topK"),
            top_p: body.number("topP"),
            min_p: body.number("minP"),
            repeat_penalty: body.number("repeatPenalty"),
            repeat_last_n: body.count("repeatLastN").map(|n| n.min(MOST_REPEAT_LAST_N)),
            frequency_penalty: body.number("frequencyPenalty"),
            presence_penalty: body.number("presencePenalty"),
            // llama.cpp's way to ask for a random one is -1, which is no number of this type.
            seed: body.whole("seed").and_then(|seed| u64::try_from(seed).ok()),
            stop: body.texts("stop"),
            max_tokens: body
                .count("maxTokens")
                .map_or(DEFAULT_MAX_TOKENS, |n| n.min(i32::MAX.cast_unsigned())),
            ignore_eos: body.flag("ignoreEos").unwrap_or(false),
            cache_prompt: body.flag("cachePrompt").unwrap_or(true),
            deadline_ms: body
                .whole("deadlineMs")
                .and_then(|ms| u64::try_from(ms).ok())
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
            format: self.format,
            ..Request::new(client, Prompt::Messages(self.messages))
        }
    }
}

fn format(asked: Value) -> Format {
    match asked {
        Value::Object(_) => Format::JsonSchema(asked),
        _ => Format::JsonObject,
    }
}

fn no_pictures(body: &mut Body) -> Result<(), ApiError> {
    let image = body.any("image");
    let is_picture = |image: &Value| image.as_str() != Some("");
    if image.is_some_and(|image| is_picture(&image)) || body.any("captureConfig").is_some() {
        return Err(ApiError::bad_request("this model reads text only")
            .details("leave out `image` and `captureConfig`"));
    }
    Ok(())
}

/// The chat: `system`, the turns of `messages`, and `text` as the latest turn.
fn messages(body: &mut Body) -> Result<Vec<Message>, ApiError> {
    let mut said = |name| body.text(name).filter(|text| !text.is_empty());
    let (text, prompt, system) = (said("text"), said("prompt"), said("system"));
    let turns: Vec<Message> = body.list("messages").into_iter().map(turn).collect();
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

fn turn(value: Value) -> Message {
    let mut turn = Body::of(value);
    let role = match turn.text("role").as_deref() {
        Some("system") => Role::System,
        Some("assistant") => Role::Assistant,
        _ => Role::User,
    };
    Message::new(role, turn.text("content").unwrap_or_default())
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
