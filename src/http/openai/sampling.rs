//! The fields that chats, completions and responses have in common: how tokens are chosen and where an answer ends.

use crate::engine::{Prompt, Request, Sampling, Token};
use crate::http::group::MOST_CHOICES;
use crate::http::schema::{Body, Field, Shape, optional};
use crate::models::SamplingDefaults;

/// Tokens that penalties look at when a request names no number, as in llama.cpp.
const DEFAULT_REPEAT_LAST_N: u32 = 64;
const MOST_REPEAT_LAST_N: u32 = 65_536;
const MOST_BIASES: usize = 1024;

const STOP: Shape = Shape::Text {
    least: 1,
    most: 256,
};

/// A day: who waits longer has left.
const LONGEST_DEADLINE_MS: u64 = 24 * 60 * 60 * 1000;

/// How long the answer may take; for embeddings too.
pub(super) const DEADLINE: Field = optional(
    "deadline_ms",
    Shape::at_least(1),
    "extension; milliseconds within which the answer must end: what is there by then is given, or an error if there is nothing",
);

/// Takes it from a checked body.
pub(super) fn deadline(body: &mut Body) -> Option<u64> {
    let asked = body.whole("deadline_ms")?;
    Some(u64::try_from(asked).map_or(LONGEST_DEADLINE_MS, |ms| ms.min(LONGEST_DEADLINE_MS)))
}

/// Where a request names nothing, the model's own values count.
#[rustfmt::skip] // A table reads best as one.
pub(super) const FIELDS: &[Field] = &[
    optional("model", Shape::TEXT, "one of the names in /v1/models, or an alias; the default model if absent"),
    optional("stream", Shape::Flag, "true sends the answer as it is made, as server-sent events"),
    optional("temperature", Shape::Number { least: 0.0, most: 2.0 }, "0 always takes the likeliest token"),
    optional("top_p", Shape::Number { least: 0.0, most: 1.0 }, "1 keeps all tokens"),
    optional("user", Shape::TEXT, "accepted, and not looked at"),
    optional("top_k", Shape::at_least(-1), "extension; 0 or -1 keeps all tokens"),
    optional("min_p", Shape::Number { least: 0.0, most: 1.0 }, "extension; 0 is off"),
    // The engine divides by it.
    optional("repeat_penalty", Shape::Number { least: 0.01, most: 100.0 }, "extension; 1 is off"),
    optional("repeat_last_n", Shape::at_least(0), "extension; tokens that the penalties look at, up to 65536; 64 if absent"),
    optional("seed", Shape::at_least(i64::MIN), "the same seed gives the same answer; absent or -1 for a random one"),
    optional("ignore_eos", Shape::Flag, "extension; true goes on until the token limit (for benchmarks)"),
    optional("cache_prompt", Shape::Flag, "extension; false decodes the whole prompt anew"),
    DEADLINE,
];

/// Fields that chats and completions have beside [`FIELDS`].
#[rustfmt::skip] // A table reads best as one.
pub(super) const CLASSIC_FIELDS: &[Field] = &[
    optional("n", Shape::between(1, MOST_CHOICES), "answers to make; with a seed, the later ones use the numbers after it"),
    optional("stop", Shape::Either(&[STOP, Shape::List { of: &STOP, least: 0, most: 16 }]), "an answer ends before the first of these"),
    optional("presence_penalty", Shape::Number { least: -2.0, most: 2.0 }, "0 is off"),
    optional("frequency_penalty", Shape::Number { least: -2.0, most: 2.0 }, "0 is off"),
    optional("logit_bias", Shape::ByToken { of: &Shape::Number { least: -100.0, most: 100.0 }, most: MOST_BIASES }, "added to the logits of tokens, by token id; -100 forbids one"),
    optional("stream_options", Shape::Object(&[
        optional("include_usage", Shape::Flag, "true sends the tokens counted as the last object of a stream"),
    ]), ""),
];

/// How an answer is sent as it is made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Streamed {
    /// Whether the tokens counted come at the end.
    pub(super) include_usage: bool,
}

/// What was asked; `None` is up to the model.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) model: Option<String>,
    pub(super) stream: Option<Streamed>,
    pub(super) n: usize,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<u32>,
    frequency_penalty: f32,
    presence_penalty: f32,
    logit_bias: Vec<(Token, f32)>,
    seed: Option<u64>,
    stop: Vec<String>,
    ignore_eos: bool,
    cache_prompt: bool,
    deadline_ms: Option<u64>,
}

impl Common {
    /// Takes the fields from a checked body.
    pub(super) fn take(body: &mut Body) -> Self {
        let options = body.object("stream_options");
        let include_usage = options.and_then(|mut options| options.flag("include_usage"));
        let streamed = Streamed {
            include_usage: include_usage.unwrap_or(false),
        };
        Self {
            model: body.text("model"),
            stream: body.flag("stream").unwrap_or(false).then_some(streamed),
            n: body.count("n").map_or(1, |n| n as usize),
            temperature: body.number("temperature"),
            top_k: body.count("top_k"),
            top_p: body.number("top_p"),
            min_p: body.number("min_p"),
            repeat_penalty: body.number("repeat_penalty"),
            repeat_last_n: body
                .count("repeat_last_n")
                .map(|n| n.min(MOST_REPEAT_LAST_N)),
            frequency_penalty: body.number("frequency_penalty").unwrap_or(0.0),
            presence_penalty: body.number("presence_penalty").unwrap_or(0.0),
            logit_bias: biases(body),
            seed: seed(body.whole("seed")),
            stop: body.texts("stop"),
            ignore_eos: body.flag("ignore_eos").unwrap_or(false),
            cache_prompt: body.flag("cache_prompt").unwrap_or(true),
            deadline_ms: deadline(body),
        }
    }

    /// The engine's request for one answer.
    pub(super) fn request(
        &self,
        model: &SamplingDefaults,
        client: &str,
        prompt: Prompt,
    ) -> Request {
        let seed = self.seed.unwrap_or_else(Sampling::random_seed);
        self.seeded(model, client, prompt, seed)
    }

    /// The engine's requests, `n` for each prompt: the same but for their seeds.
    pub(super) fn requests(
        &self,
        model: &SamplingDefaults,
        client: &str,
        prompts: &[Prompt],
    ) -> Vec<Request> {
        let seed = self.seed.unwrap_or_else(Sampling::random_seed);
        let choices = prompts
            .iter()
            .flat_map(|prompt| (0..self.n).map(move |_| prompt));
        let numbered = (0..).zip(choices);
        let request = |(choice, prompt): (u64, &Prompt)| {
            self.seeded(model, client, prompt.clone(), seed.wrapping_add(choice))
        };
        numbered.map(request).collect()
    }

    fn seeded(&self, model: &SamplingDefaults, client: &str, prompt: Prompt, seed: u64) -> Request {
        Request {
            sampling: self.sampling(model, seed),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            cache_prompt: self.cache_prompt,
            deadline_ms: self.deadline_ms,
            ..Request::new(client, prompt)
        }
    }

    fn sampling(&self, model: &SamplingDefaults, seed: u64) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(model.temperature),
            top_k: self.top_k.unwrap_or(model.top_k),
            top_p: self.top_p.unwrap_or(model.top_p),
            min_p: self.min_p.unwrap_or(model.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(model.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(DEFAULT_REPEAT_LAST_N),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.clone(),
            seed,
        }
    }
}

/// A negative number is as good a seed as any, except llama.cpp's way to ask for a random one.
fn seed(asked: Option<i128>) -> Option<u64> {
    let asked = asked.filter(|asked| *asked != -1)?;
    let negative = || i64::try_from(asked).map_or(u64::MAX, i64::cast_unsigned);
    Some(u64::try_from(asked).unwrap_or_else(|_| negative()))
}

fn biases(body: &mut Body) -> Vec<(Token, f32)> {
    let Some(mut biases) = body.object("logit_bias") else {
        return Vec::new();
    };
    let ids: Vec<String> = biases.names().map(str::to_owned).collect();
    let bias = |id: String| Some((Token(id.parse().ok()?), biases.number(&id)?));
    ids.into_iter().filter_map(bias).collect()
}
