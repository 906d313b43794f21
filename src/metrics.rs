//! What is counted, and how `/metrics` shows it (`OpenMetrics` text, prefix `pocket_llm_`).
//!
//! The front's own numbers are counted as things happen. The engines' are read when somebody asks: the [`Pool`] has them
//! anyway. No label holds anything that a client chose: `model` is a name of the library.

use crate::engine::EngineState;
use crate::pool::Pool;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::Duration;

const PREFIX: &str = "pocket_llm";

/// How a request for an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The model ended its answer.
    Ok,
    /// The token limit or the context's end cut the answer.
    Length,
    /// The request's deadline cut the answer; the text so far went out.
    Deadline,
    /// The client left before the end.
    Cancelled,
    /// It ended with an error; the text is that error's code in lower case.
    Error(&'static str),
}

impl Outcome {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Length => "length",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::Error(code) => code,
        }
    }
}

/// A limit that somebody ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Every place for requests was taken.
    Places,
    /// A client had as many places as one may have.
    ClientShare,
    /// Bodies that are being read hold all the memory set aside for them.
    BodyMemory,
    /// A request body was too large.
    BodySize,
    /// A request body came too slowly.
    BodyTime,
    /// A prompt left no room in the context.
    Context,
    /// A request's deadline passed.
    Deadline,
    /// A connection had to wait for another one to close.
    Connections,
    /// A client did not read its answer for too long.
    SendTime,
}

impl Limit {
    const ALL: [Self; 9] = [
        Self::Places,
        Self::ClientShare,
        Self::BodyMemory,
        Self::BodySize,
        Self::BodyTime,
        Self::Context,
        Self::Deadline,
        Self::Connections,
        Self::SendTime,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Places => "places",
            Self::ClientShare => "client_share",
            Self::BodyMemory => "body_memory",
            Self::BodySize => "body_size",
            Self::BodyTime => "body_time",
            Self::Context => "context",
            Self::Deadline => "deadline",
            Self::Connections => "connections",
            Self::SendTime => "send_time",
        }
    }
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Of the whole prompt, cached ones included.
    pub prompt: u32,
    /// Prompt tokens that were not decoded again.
    pub cached: u32,
    /// Of the answer.
    pub generated: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

/// What a listener counts. Clones share their numbers.
#[derive(Clone, Debug, Default)]
pub struct ConnectionMeters {
    /// Open connections.
    pub open: Gauge,
    /// Connections that waited for another one to close.
    pub waited: Counter,
    /// Connections closed because the client did not read.
    pub unread: Counter,
}

/// The program's counters. One per server.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    limits: Family<LimitLabels, Counter>,
    connections: Gauge,
    first_text: Histogram,
    between_texts: Histogram,
    queue: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            requests: Family::default(),
            limits: Family::default(),
            connections: Gauge::default(),
            first_text: histogram([0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
            between_texts: histogram([0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0]),
            queue: histogram([0.005, 0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
        };
        for limit in Limit::ALL {
            metrics.limit_counter(limit);
        }
        metrics.register();
        metrics
    }

    #[rustfmt::skip] // A table reads best as one.
    fn register(&mut self) {
        let registry = &mut self.registry;
        let build = vec![("version", env!("CARGO_PKG_VERSION")), ("build", crate::engine::wire::BUILD)];
        registry.register("build", "This program", Info::new(build));
        registry.register("requests", "Requests for an answer, by how they ended", self.requests.clone());
        registry.register("limits_hit", "Times that a limit was reached", self.limits.clone());
        registry.register("connections", "Open connections", self.connections.clone());
        registry.register("prompt_tokens", "Tokens of started prompts, cached ones included", self.prompt_tokens.clone());
        registry.register("cached_tokens", "Prompt tokens that needed no decoding", self.cached_tokens.clone());
        registry.register("generated_tokens", "Tokens of answers", self.generated_tokens.clone());
        let mut seconds = |name, help, metric: &Histogram| registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
        seconds("time_to_first_token", "From a request's arrival to the first piece of its answer", &self.first_text);
        seconds("inter_token", "Between two pieces of an answer, as its client took them", &self.between_texts);
        seconds("queue", "From a request's arrival to the start of its prefill", &self.queue);
    }

    /// Counts the end of a request for an answer.
    pub fn request(&self, endpoint: &'static str, outcome: Outcome) {
        let outcome = outcome.as_str();
        let labels = RequestLabels { endpoint, outcome };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts that a limit was reached.
    pub fn limit(&self, limit: Limit) {
        self.limit_counter(limit).inc();
    }

    fn limit_counter(&self, limit: Limit) -> Counter {
        let limit = limit.as_str();
        self.limits.get_or_create_owned(&LimitLabels { limit })
    }

    /// What the listener counts.
    pub fn connections(&self) -> ConnectionMeters {
        ConnectionMeters {
            open: self.connections.clone(),
            waited: self.limit_counter(Limit::Connections),
            unread: self.limit_counter(Limit::SendTime),
        }
    }

    /// Records how long a request waited for its sequence.
    pub fn queued(&self, time: Duration) {
        self.queue.observe(time.as_secs_f64());
    }

    /// Records the time to the first piece of an answer.
    pub fn first_text(&self, time: Duration) {
        self.first_text.observe(time.as_secs_f64());
    }

    /// Records the time between two pieces of an answer.
    pub fn between_texts(&self, time: Duration) {
        self.between_texts.observe(time.as_secs_f64());
    }

    /// Counts the tokens of a request that is over.
    pub fn tokens(&self, tokens: TokenCounts) {
        self.prompt_tokens.inc_by(tokens.prompt.into());
        self.cached_tokens.inc_by(tokens.cached.into());
        self.generated_tokens.inc_by(tokens.generated.into());
    }

    /// Everything as `OpenMetrics` text, the engines' numbers included.
    pub fn encode(&self, pool: &Pool) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &pool_registry(pool))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// The engines' numbers of this moment: sums over all models, and what each one takes.
#[rustfmt::skip] // A table reads best as one.
fn pool_registry(pool: &Pool) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let totals = pool.totals();
    let worker = &totals.workers;
    let queued = pool.in_flight().saturating_sub(worker.running);

    let loaded = Family::<ModelLabels, Gauge>::default();
    let memory = Family::<ModelLabels, Gauge>::default();
    for seen in pool.seen() {
        let labels = ModelLabels { model: seen.facts.model.name.clone() };
        let ready = matches!(seen.state, EngineState::Ready(_));
        // While a model leaves and comes back it is here twice.
        loaded.get_or_create(&labels).inc_by(i64::from(ready));
        memory.get_or_create(&labels).inc_by(i64::try_from(seen.bytes).unwrap_or(i64::MAX));
    }
    registry.register("model_loaded", "Whether a model is in memory", loaded);
    registry.register_with_unit("model_memory", "What a model takes by the memory plan", Unit::Bytes, memory);

    let mut gauge = |name, help, value: u32| registry.register(name, help, ConstGauge::new(value));
    gauge("requests_running", "Requests that have a sequence", worker.running);
    gauge("requests_queued", "Requests that wait for one", queued);
    gauge("request_places", "Requests that may run or wait at once for one model", pool.places());
    gauge("kv_cells", "KV cells in all", worker.kv_cells);
    gauge("kv_cells_used", "KV cells that hold tokens, kept ones included", worker.kv_cells_used);
    gauge("threads_left_out", "Threads that the last step had less than planned because its cores were taken", worker.threads_left_out);

    let saved = ConstGauge::new(i64::try_from(worker.saved_bytes).unwrap_or(i64::MAX));
    registry.register_with_unit("prompt_cache", "States of earlier prompts beside the KV cache", Unit::Bytes, saved);

    let mut counter = |name, help, value: u64| registry.register(name, help, ConstCounter::new(value));
    counter("model_loads", "Times that a model was let into memory", totals.loads);
    counter("model_unloads", "Times that a model went", totals.unloads);
    counter("worker_restarts", "Workers started after their model's first", totals.restarts);
    counter("worker_steps", "Steps of the engines' loops", worker.steps);
    counter("worker_prefill_rows", "Prompt tokens decoded", worker.prefill_rows);
    counter("worker_decode_rows", "Answer tokens decoded, drafts included", worker.decode_rows);
    counter("padding_rows", "Rows decoded only because a step is faster with them", worker.padding_rows);
    counter("draft_tokens", "Tokens guessed and decoded together with one that was due", worker.draft_rows);
    counter("draft_tokens_kept", "Those of them that the model said", worker.draft_rows_kept);
    counter("cancellations", "Sequences freed because their client left or their time was over", worker.cancelled);

    let mut seconds = |name, help, micros: u64| {
        let time = Duration::from_micros(micros).as_secs_f64();
        registry.register_with_unit(name, help, Unit::Seconds, ConstCounter::new(time));
    };
    seconds("worker_decode", "Time inside llama_decode", worker.decode_us);
    seconds("worker_overhead", "Time of everything else in a step, reports by processor time", worker.overhead_us);
    registry
}

fn histogram<const N: usize>(buckets: [f64; N]) -> Histogram {
    Histogram::new(buckets)
}
