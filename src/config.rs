//! What the user typed → a validated [`Config`]. Pure: the machine's facts come in as a value.

use crate::device::{Allowed, CoreSet, Placement, Team, Topology, placement};
use crate::engine::{
    CacheScope, CacheType, EngineOptions, Launch, MOST_ROWS, MOST_SEQUENCES, Speculate,
    WorkerConfig,
};
use crate::http::{ApiKey, Origins};
use crate::models::catalogue::CatalogueError;
use crate::models::memory::{Asked, DEFAULT_PARALLEL, DEFAULT_ROWS, Kernels};
use crate::models::store::{StoreError, default_root};
use crate::models::{Catalogue, Collection, CollectionError, Store, Tunings};
use crate::pool::{Drafts, Placed, PoolSettings};
use clap::builder::{FalseyValueParser, OsStringValueParser, TypedValueParser};
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A body of control characters is six times as long when it is escaped for the worker, and must fit into a frame.
const MOST_BODY: usize = crate::engine::wire::MAX_FRAME / 6 - 4096;
/// More waiting requests are no service to anybody.
const MOST_QUEUE: u32 = 4096;

/// More models at once are no use to anybody.
const MOST_MODELS: u32 = 64;

/// Where models lie, and which are known; the same for every command.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArgs {
    /// Folder of the models [default: pocket-llm/models in the user's data folder, such as
    /// ~/.local/share/pocket-llm/models]
    #[arg(long, env = "POCKET_LLM_MODELS", value_name = "DIR", value_parser = maybe_empty())]
    pub models: Option<PathBuf>,

    /// Folder with further model descriptions (*.toml like those in models/); one with the name of a built-in model replaces
    /// it
    #[arg(long, env = "POCKET_LLM_CATALOGUE", value_name = "DIR", value_parser = maybe_empty())]
    pub catalogue: Option<PathBuf>,
}

impl StoreArgs {
    /// Opens what they name, and creates the folder of models; without the usual one, models are files.
    pub fn open(&self) -> Result<Collection, CollectionError> {
        let models = named(self.models.as_deref()).map(absolute);
        Collection::open(models.as_deref(), named(self.catalogue.as_deref()))
    }

    /// Opens what they name as it is, for who only reads.
    pub fn look(&self) -> Result<Collection, CollectionError> {
        let models = named(self.models.as_deref()).map(absolute);
        Collection::look(models.as_deref(), named(self.catalogue.as_deref()))
    }

    /// The known models.
    pub fn catalogue(&self) -> Result<Catalogue, CatalogueError> {
        Catalogue::load(named(self.catalogue.as_deref()))
    }

    /// The folder of models, which is created if it is not there.
    pub fn store(&self) -> Result<Store, StoreError> {
        Store::open(&self.root()?)
    }

    /// What `tune` found on this machine, if there is a folder of models. What is said in `engine` by hand counts more.
    pub fn tunings(&self, machine: &Machine, engine: &EngineArgs) -> Option<Tunings> {
        let root = self.root().ok()?;
        let tunings = Tunings::new(&root, &machine.topology, &machine.allowed);
        Some(tunings.without(engine.is_placed_by_hand(), engine.cache_type.is_some()))
    }

    /// The folder of models as it is, for who only reads or removes.
    pub fn store_as_it_is(&self) -> Result<Store, StoreError> {
        Store::look(&self.root()?)
    }

    fn root(&self) -> Result<PathBuf, StoreError> {
        named(self.models.as_deref()).map_or_else(default_root, |root| Ok(absolute(root)))
    }
}

/// A path that may be empty, as variables are that somebody unset by hand.
fn maybe_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// An empty path names nothing.
fn named(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// How a model is run; the same for `serve` and `run`.
#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    /// Tokens (prompt and answer) of all answers that run at once, each of which gets an equal share, rounded up to 256. They
    /// cost memory: 23 KiB each for SmolLM2 135M, 26 KiB for Gemma 3 1B, 28 KiB for Qwen 2.5 1.5B [default: 2048 for each
    /// answer, or what the model was trained with if that is less]
    #[arg(long, short = 'c', env = "POCKET_LLM_CTX_SIZE", value_name = "CELLS")]
    pub ctx_size: Option<u32>,

    /// Threads for decoding one answer. More threads than free cores make it many times slower [default: what
    /// `pocket-llm tune` found, else the performance cores, within the affinity mask and the CPU quota]
    #[arg(long, short = 't', env = "POCKET_LLM_THREADS", value_name = "N")]
    pub threads: Option<u32>,

    /// Threads for prompts and for several answers at once [default: as --threads]
    #[arg(long, env = "POCKET_LLM_THREADS_BATCH", value_name = "N")]
    pub threads_batch: Option<u32>,

    /// Rows of one step at most. More make long prompts faster where `--step-ms` has room for them, and each costs memory
    /// (110 KiB for Gemma 3 1B) [default: 128; 256 or 512 for models where that costs 16 MiB at most; fewer where memory is short]
    #[arg(long, short = 'b', env = "POCKET_LLM_BATCH_SIZE", value_name = "ROWS")]
    pub batch_size: Option<u32>,

    /// Cores to compute on, such as `4-7` [default: the performance cores]
    #[arg(long, env = "POCKET_LLM_CORES", value_name = "LIST")]
    pub cores: Option<CoreSet>,

    /// How the KV cache is stored: `q8_0` takes little more than half the memory of `f16`, and answers may differ a little
    /// [default: f16, or what `pocket-llm tune` was allowed to choose]
    #[arg(long, env = "POCKET_LLM_CACHE_TYPE", value_name = "TYPE")]
    pub cache_type: Option<CacheType>,

    /// Memory beside the KV cache for states of earlier prompts, in MiB: what a conversation left when another one took its place,
    /// and prefixes that several requests share. 0 keeps none [default: 64, or what is left over]
    #[arg(long, env = "POCKET_LLM_CACHE_MIB", value_name = "MIB")]
    pub cache_mib: Option<u64>,

    /// Whose prompts and answers make a request faster: everybody's, or only those of the same client. Answers never show them; how
    /// soon they come tells whether the same prompt was here before
    #[arg(
        long,
        env = "POCKET_LLM_CACHE_SCOPE",
        value_enum,
        default_value_t,
        value_name = "SCOPE"
    )]
    pub cache_scope: Scope,

    /// Guess tokens that were said before in the same order, and decode them together with the one that is due, where that is
    /// measured to be faster. What is said stays the same
    #[arg(
        long,
        env = "POCKET_LLM_SPECULATE",
        value_enum,
        default_value_t,
        value_name = "WHEN"
    )]
    pub speculate: Guess,

    /// A smaller model with the same vocabulary that guesses what the model says, where that is measured to be faster: a name as for
    /// the model itself, or `auto` for the one that the catalogue names, if it is on disk. It takes memory of its own [default: none]
    #[arg(long, env = "POCKET_LLM_DRAFT_MODEL", value_name = "MODEL")]
    pub draft_model: Option<String>,

    /// Memory that all loaded models may take together, in MiB [default: what the machine, or the cgroup, has free, less
    /// a reserve]
    #[arg(long, env = "POCKET_LLM_MEMORY", value_name = "MIB")]
    pub memory: Option<u64>,

    /// How long a step should take at most, in milliseconds; about three times as long where only prompts are in it. Long prompts are
    /// cut into chunks that keep to it: smaller values let running answers and cancelled requests wait less, and make long
    /// prompts slower. Decoding alone may take longer on a slow machine
    #[arg(
        long,
        env = "POCKET_LLM_STEP_MS",
        default_value_t = 300,
        value_name = "MS"
    )]
    pub step_ms: u32,

    /// A worker process with work that says nothing for this long is ended and started again, at the latest after twelve
    /// times as long if it still computes
    #[arg(
        long,
        env = "POCKET_LLM_STALL_SECONDS",
        default_value_t = 10.0,
        value_name = "S"
    )]
    pub stall_seconds: f64,

    /// Program and arguments put before the worker's, separated by blanks: `taskset -c 4-7`, `perf record`, an emulator;
    /// they must end in a program of this very build
    #[arg(long, env = "POCKET_LLM_ENGINE_LAUNCHER", hide = true)]
    pub engine_launcher: Option<String>,
}

/// What `serve` takes.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The model for requests that name none: a name (see `pocket-llm list`), `hf:OWNER/REPO/FILE.gguf`, or a GGUF file. It is
    /// loaded at start; one that can't be loaded ends the program with status 1. Other models in the store are loaded when
    /// a request names them [default: the first one in the store, loaded by the first request]
    #[arg(env = "POCKET_LLM_MODEL")]
    pub model: Option<String>,

    /// Where models lie, and which are known
    #[command(flatten)]
    pub store: StoreArgs,

    /// Models in memory at once. One more makes the one go that was not used for longest
    #[arg(
        long,
        env = "POCKET_LLM_MODELS_MAX",
        default_value_t = 4,
        value_name = "N"
    )]
    pub models_max: u32,

    /// A model that nobody asked for this long is unloaded, the default one too; the next request brings it back. -1: it
    /// stays until another one needs its room
    #[arg(
        long,
        env = "POCKET_LLM_SLEEP_IDLE_SECONDS",
        default_value_t = -1.0,
        allow_negative_numbers = true,
        value_parser = idle_seconds,
        value_name = "S"
    )]
    pub sleep_idle_seconds: f64,

    /// Let clients install models from any public address (POST /ai/text/upload-model-api) and from any hub repository.
    /// Models of the catalogue can be downloaded in any case
    #[arg(long, env = "POCKET_LLM_ALLOW_INSTALL", value_parser = FalseyValueParser::new())]
    pub allow_install: bool,

    /// Let clients delete models from the store (DELETE /ai/models/NAME)
    #[arg(long, env = "POCKET_LLM_ALLOW_DELETE", value_parser = FalseyValueParser::new())]
    pub allow_delete: bool,

    /// Another name that the default model answers to, such as `GEMMA_3_1B_IT`; give it several times or separate names
    /// by commas. A request for a name that is unknown gets 404
    #[arg(
        long = "alias",
        short = 'a',
        env = "POCKET_LLM_ALIAS",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub aliases: Vec<String>,

    /// Address to listen on; give it several times for more. Anything but loopback lets others use the model: set
    /// --api-key too
    #[arg(
        long = "host",
        env = "POCKET_LLM_HOST",
        value_delimiter = ',',
        default_value = "127.0.0.1",
        value_name = "ADDRESS"
    )]
    pub hosts: Vec<String>,

    /// Port to listen on; 0 takes a free one and prints it
    #[arg(long, short = 'p', env = "POCKET_LLM_PORT", default_value_t = 8005)]
    pub port: u16,

    /// Answers that one model generates at once; each has its share of --ctx-size [default: 4, or fewer where memory is
    /// short]
    #[arg(long, env = "POCKET_LLM_PARALLEL", value_name = "N")]
    pub parallel: Option<u32>,

    /// Requests that may wait for a model while --parallel others run; one more gets 429 with a Retry-After
    #[arg(
        long,
        env = "POCKET_LLM_QUEUE",
        default_value_t = 128,
        value_name = "N"
    )]
    pub queue: u32,

    /// Key that clients must send as `Authorization: Bearer KEY`; several are separated by commas. /livez and /readyz need
    /// none
    #[arg(
        long,
        env = "POCKET_LLM_API_KEY",
        value_delimiter = ',',
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub api_key: Vec<ApiKey>,

    /// File with further keys, one per line; it is read again when it changes. A line that begins with # is a comment
    #[arg(long, env = "POCKET_LLM_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Origin of web pages that may use this server, such as `http://localhost:3000`; `*` lets every page in. Without it pages
    /// of other sites get 403. Programs that are no browsers need no permission
    #[arg(
        long = "cors-origin",
        env = "POCKET_LLM_CORS_ORIGIN",
        value_delimiter = ',',
        value_name = "ORIGIN"
    )]
    pub cors_origins: Vec<String>,

    /// Further name under which clients may reach this server over loopback, such as one of a reverse proxy on this
    /// machine. Without it only localhost, 127.0.0.1 and `[::1]` are answered there
    #[arg(
        long = "allowed-host",
        env = "POCKET_LLM_ALLOWED_HOST",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub allowed_hosts: Vec<String>,

    /// Largest request body in bytes; a larger one gets 413
    #[arg(long, env = "POCKET_LLM_BODY_LIMIT", default_value_t = 8 << 20, value_name = "BYTES")]
    pub body_limit: usize,

    /// Connections that are open at once; one more is accepted and waits, further ones wait in the system's backlog
    #[arg(
        long,
        env = "POCKET_LLM_MAX_CONNECTIONS",
        default_value_t = 1024,
        value_name = "N"
    )]
    pub max_connections: u32,

    /// Seconds between the keep-alives of a stream that has nothing to say yet
    #[arg(
        long,
        env = "POCKET_LLM_KEEP_ALIVE_SECONDS",
        default_value_t = 5.0,
        value_name = "S"
    )]
    pub keep_alive_seconds: f64,

    /// Seconds after SIGTERM or SIGINT in which requests are still accepted, because load balancers lag; /readyz says no
    /// at once
    #[arg(
        long,
        env = "POCKET_LLM_DRAIN_DELAY",
        default_value_t = 3.0,
        value_name = "S"
    )]
    pub drain_delay: f64,

    /// Seconds after the drain delay in which running and waiting requests may finish; then they get an error
    #[arg(
        long,
        env = "POCKET_LLM_GRACE",
        default_value_t = 25.0,
        value_name = "S"
    )]
    pub grace: f64,

    /// How the model is run
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What the machine allows.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its cores.
    pub topology: Topology,
    /// What of them this program may use.
    pub allowed: Allowed,
    /// What its kernels want of the weights.
    pub kernels: Kernels,
}

impl Machine {
    /// The machine that this program runs on.
    pub fn here() -> Self {
        Self {
            topology: Topology::here(),
            allowed: Allowed::here(),
            kernels: Kernels::here(),
        }
    }
}

/// A setting that can't be used: one sentence with what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// A server's settings, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses to listen on, each once.
    pub listen: Vec<SocketAddr>,
    /// The default model, as it was named.
    pub model: Option<String>,
    /// Where models lie, and which are known.
    pub store: StoreArgs,
    /// Further names of the default model.
    pub aliases: Vec<String>,
    /// How models are run, and how many.
    pub pool: PoolSettings,
    /// Which model drafts for others, as it was named.
    pub draft_model: Option<String>,
    /// Whether clients may install models from any address.
    pub allow_install: bool,
    /// Whether clients may delete models.
    pub allow_delete: bool,
    /// Keys of which clients must send one; empty for none.
    pub api_keys: Vec<ApiKey>,
    /// File with further keys.
    pub api_key_file: Option<PathBuf>,
    /// Web pages that may use this server.
    pub origins: Origins,
    /// Names under which it may be called over loopback, besides those of loopback.
    pub hosts: Vec<String>,
    /// Largest body in bytes.
    pub body_limit: usize,
    /// Open connections at most.
    pub max_connections: usize,
    /// Between keep-alives.
    pub keep_alive: Duration,
    /// From the signal to refusing new requests.
    pub drain_delay: Duration,
    /// From there to ending what still runs.
    pub grace: Duration,
}

impl ServeArgs {
    /// Checks everything that can be checked without touching the world.
    pub fn check(self, machine: &Machine) -> Result<Config, ConfigError> {
        let mut listen = Vec::new();
        for host in &self.hosts {
            let address = SocketAddr::new(address(host)?, self.port);
            if !listen.contains(&address) {
                listen.push(address);
            }
        }
        within("--queue", self.queue, 0, MOST_QUEUE)?;
        within("--body-limit", self.body_limit, 1024, MOST_BODY)?;
        within("--max-connections", self.max_connections, 1, 65_536)?;
        if self.api_key.iter().any(ApiKey::is_empty) {
            return Err(ConfigError(
                "--api-key: an empty key protects nothing; leave the flag out or give a key".into(),
            ));
        }
        let aliases: Vec<String> = self
            .aliases
            .iter()
            .map(|name| name.trim().to_owned())
            .collect();
        if let Some(alias) = aliases
            .iter()
            .find(|name| name.is_empty() || name.chars().any(char::is_control))
        {
            return Err(ConfigError(format!(
                "--alias {alias:?}: a name can't be empty or hold control characters"
            )));
        }
        within("--models-max", self.models_max, 1, MOST_MODELS)?;
        let mut pool = self.engine.check(self.parallel, self.queue, machine)?;
        pool.placed.tunings = self.store.tunings(machine, &self.engine);
        pool.most_loaded = self.models_max as usize;
        if self.sleep_idle_seconds >= 0.0 {
            let flag = "--sleep-idle-seconds";
            pool.keep_alive = Some(seconds(flag, self.sleep_idle_seconds, 0.0, 1e9)?);
        }
        Ok(Config {
            listen,
            model: self.model.filter(|model| !model.trim().is_empty()),
            store: self.store,
            aliases,
            pool,
            draft_model: self.engine.draft_model,
            allow_install: self.allow_install,
            allow_delete: self.allow_delete,
            api_keys: self.api_key,
            api_key_file: self.api_key_file,
            origins: Origins::new(&said(self.cors_origins))
                .map_err(|error| ConfigError(format!("--cors-origin: {error}")))?,
            hosts: said(self.allowed_hosts),
            body_limit: self.body_limit,
            max_connections: self.max_connections as usize,
            keep_alive: seconds(
                "--keep-alive-seconds",
                self.keep_alive_seconds,
                0.01,
                3600.0,
            )?,
            drain_delay: seconds("--drain-delay", self.drain_delay, 0.0, 3600.0)?,
            grace: seconds("--grace", self.grace, 0.0, 86_400.0)?,
        })
    }
}

/// Whose prompts and answers make a request faster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// Everybody's.
    #[default]
    Server,
    /// Those of the same client.
    Client,
}

impl From<Scope> for CacheScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Server => Self::Server,
            Scope::Client => Self::Client,
        }
    }
}

/// When tokens are guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Guess {
    /// Where it is measured to be faster.
    #[default]
    Auto,
    /// Wherever there is something to guess from, whatever it costs: for measurements.
    Always,
    /// Never.
    Off,
}

impl From<Guess> for Speculate {
    fn from(guess: Guess) -> Self {
        match guess {
            Guess::Auto => Self::Auto,
            Guess::Always => Self::Always,
            Guess::Off => Self::Off,
        }
    }
}

/// An empty variable of the environment is one that is not set.
fn said(names: Vec<String>) -> Vec<String> {
    let names = names.into_iter().map(|name| name.trim().to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

impl EngineArgs {
    /// Checks how models are to be run, each with `parallel` sequences and `queue` waiting requests. One model at a time, and
    /// it stays.
    pub fn check(
        &self,
        parallel: Option<u32>,
        queue: u32,
        machine: &Machine,
    ) -> Result<PoolSettings, ConfigError> {
        let sequences = parallel.unwrap_or(DEFAULT_PARALLEL);
        within("--parallel", sequences, 1, MOST_SEQUENCES)?;
        let (placement, reason) = self.placement(machine)?;
        let why = |error: ConfigError, why| ConfigError(format!("{error} ({why})"));
        if let Some(rows) = self.batch_size {
            within("--batch-size", rows, sequences, MOST_ROWS)
                .map_err(|error| why(error, "a row for each of --parallel at least"))?;
        }
        within("--step-ms", self.step_ms, 1, 60_000)?;
        if let Some(cells) = self.ctx_size {
            within(
                "--ctx-size",
                cells,
                64 * sequences,
                i32::MAX.cast_unsigned(),
            )
            .map_err(|error| why(error, "64 for each of --parallel at least"))?;
        }
        let cache_bytes = self.cache_bytes()?;
        let words = self.engine_launcher.as_deref().unwrap_or_default();
        let mut config = WorkerConfig {
            ctx_size: self.ctx_size,
            parallel: sequences,
            batch_size: self.batch_size.unwrap_or(DEFAULT_ROWS).max(sequences),
            step_ms: self.step_ms,
            places: sequences + queue,
            cache_bytes,
            cache_scope: self.cache_scope.into(),
            speculate: self.speculate.into(),
            cache_type: self.cache_type.unwrap_or_default(),
            ..WorkerConfig::default()
        };
        config.place(placement);
        Ok(PoolSettings {
            engine: EngineOptions {
                config,
                launch: Launch::Process(words.split_whitespace().map(OsString::from).collect()),
                stall: self.stall()?,
                load_stall: Duration::from_mins(2),
                restart_pause: Duration::from_millis(500),
            },
            asked: Asked {
                ctx_size: self.ctx_size,
                parallel,
                batch_size: self.batch_size,
                cache_type: self.cache_type.unwrap_or_default(),
                cache_bytes,
                no_drafts: self.speculate == Guess::Off,
            },
            placed: Placed {
                reason,
                topology: machine.topology.clone(),
                tunings: None,
            },
            kernels: machine.kernels,
            memory: self.memory.map(|mebibytes| mebibytes << 20),
            most_loaded: 1,
            keep_alive: None,
            drafts: Drafts::Nobody,
        })
    }

    /// What states of earlier prompts may take; the other sizes of memory, and who drafts, are checked with it.
    fn cache_bytes(&self) -> Result<Option<u64>, ConfigError> {
        if let Some(mebibytes) = self.memory {
            within("--memory", mebibytes, 16, 1 << 40)?;
        }
        if let Some(mebibytes) = self.cache_mib {
            within("--cache-mib", mebibytes, 0, 1 << 40)?;
        }
        if self.draft_model.is_some() && self.speculate == Guess::Off {
            return Err(ConfigError(
                "--draft-model is of no use with --speculate off: leave one of them out".into(),
            ));
        }
        Ok(self.cache_mib.map(|mebibytes| mebibytes << 20))
    }

    /// Whether somebody said what computes, so that nothing that was measured has a say in it.
    pub fn is_placed_by_hand(&self) -> bool {
        self.threads.is_some() || self.threads_batch.is_some() || self.cores.is_some()
    }

    /// Cores and threads, and why these.
    fn placement(&self, machine: &Machine) -> Result<(Placement, String), ConfigError> {
        let choice = placement::choose(&machine.topology, &machine.allowed);
        if !self.is_placed_by_hand() {
            return Ok((Placement::of(&choice.team), choice.why));
        }
        let (mut most, mut usual) = (machine.allowed.threads(), choice.team.threads);
        if let Some(cores) = &self.cores {
            let here = cores.and(&machine.allowed.cores);
            if here != *cores || here.is_empty() {
                return Err(ConfigError(format!(
                    "--cores {cores} can't be used: this program may use {}",
                    machine.allowed.cores
                )));
            }
            most = most.min(cores.count());
            usual = most;
        }
        let threads = self.threads.unwrap_or(usual);
        within("--threads", threads, 1, most)?;
        let threads_batch = self.threads_batch.unwrap_or(threads);
        within("--threads-batch", threads_batch, 1, most)?;
        let team = |threads| Team {
            threads,
            // More threads than there are performance cores are meant to use others too.
            cores: match &self.cores {
                Some(cores) => cores.clone(),
                None if threads <= choice.team.threads => choice.team.cores.clone(),
                None => CoreSet::default(),
            },
        };
        let placement = Placement {
            one: team(threads),
            few: team(threads_batch),
            many: team(threads_batch),
        };
        Ok((placement, "somebody said so".into()))
    }

    fn stall(&self) -> Result<Duration, ConfigError> {
        let stall = seconds("--stall-seconds", self.stall_seconds, 0.1, 3600.0)?;
        // A step of a prompt may be five times as long, and a fifth longer than that where it ends one.
        if stall < 6 * Duration::from_millis(self.step_ms.into()) {
            return Err(ConfigError(format!(
                "--stall-seconds {} is too close to --step-ms {}: give it six times as long at least",
                self.stall_seconds, self.step_ms
            )));
        }
        Ok(stall)
    }
}

/// A path that means the same wherever it is used. One without a meaning is refused where it is opened.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn address(host: &str) -> Result<IpAddr, ConfigError> {
    let bare = host.trim().trim_start_matches('[').trim_end_matches(']');
    match bare {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        "*" => Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        _ => bare.parse().map_err(|_| {
            ConfigError(format!("--host {host:?} is no address: use one of this machine's, such as 127.0.0.1, or 0.0.0.0 for all"))
        }),
    }
}

fn within<N: PartialOrd + Copy + std::fmt::Display>(
    flag: &str,
    value: N,
    least: N,
    most: N,
) -> Result<(), ConfigError> {
    // Written so that NaN is refused too.
    if !(value >= least && value <= most) {
        return Err(ConfigError(format!(
            "{flag} {value} can't be used: give {least} to {most}"
        )));
    }
    Ok(())
}

/// Seconds up to 10^9, or -1 for never.
fn idle_seconds(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(seconds) if seconds.total_cmp(&-1.0).is_eq() => Ok(seconds),
        Ok(seconds) if (0.0..=1e9).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds from 0 to 1000000000, or -1 for never".into()),
    }
}

fn seconds(flag: &str, value: f64, least: f64, most: f64) -> Result<Duration, ConfigError> {
    within(flag, value, least, most)?;
    Duration::try_from_secs_f64(value)
        .map_err(|error| ConfigError(format!("{flag} {value}: {error}")))
}
