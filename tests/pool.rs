//! Many models in little memory: real engines and the real loop over scripted decoders, and model files that are all header.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/gguf_file.rs"]
mod gguf_file;
#[path = "support/scripted.rs"]
mod scripted;

use gguf_file::GgufFile;
use pocket_llm::engine::{
    Answer, EngineError, EngineState, Launch, Outcome, Prompt, Question, WorkerConfig,
};
use pocket_llm::models::Model;
use pocket_llm::models::gguf::Gguf;
use pocket_llm::models::memory::{Asked, Kernels, plan};
use pocket_llm::pool::{Drafts, Lease, Placed, Pool, PoolSettings};
use pocket_llm::worker::decoder::{Backend, LoadError, Loaded};
use scripted::{EMBEDDING_BYTES, Script, ScriptedBackend, Told, options, read, request, until};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Weights of each model: much more than anything else that it needs.
const WEIGHTS: u64 = 2 << 30;

/// Loads models by name, each with a script of its own.
struct Models {
    scripts: HashMap<String, Arc<Script>>,
    loads: Mutex<Vec<String>>,
    /// The file that each of them was to be drafted for by, if any.
    drafts: Mutex<Vec<Option<PathBuf>>>,
    broken: Mutex<HashSet<String>>,
}

impl Backend for Models {
    fn run(
        &self,
        config: &WorkerConfig,
        progress: Box<dyn FnMut(f32) -> bool>,
        serve: &mut dyn FnMut(Loaded<'_>),
    ) -> Result<(), LoadError> {
        let name = config.model.file_stem().unwrap().to_str().unwrap();
        self.loads.lock().unwrap().push(name.into());
        let draft = config.draft_model.clone();
        self.drafts.lock().unwrap().push(draft);
        if self.broken.lock().unwrap().contains(name) {
            return Err(LoadError(format!("{name} is broken")));
        }
        let script = Arc::clone(&self.scripts[name]);
        ScriptedBackend { script }.run(config, progress, serve)
    }
}

struct Machine {
    folder: TempDir,
    models: Arc<Models>,
    settings: PoolSettings,
    pool: Pool,
}

impl Machine {
    /// A machine with memory for so many models.
    fn with_room_for(models: u64, change: impl FnOnce(&mut PoolSettings)) -> Self {
        let folder = TempDir::new().unwrap();
        for name in NAMES {
            write(&folder.path().join(format!("{name}.gguf")));
        }
        let scripts = NAMES.map(|name| (name.to_owned(), Arc::default()));
        let backend = Arc::new(Models {
            scripts: scripts.into(),
            loads: Mutex::default(),
            drafts: Mutex::default(),
            broken: Mutex::default(),
        });
        let mut engine = options(&Arc::default(), 2, 8);
        let serving = Arc::clone(&backend);
        engine.launch = Launch::Thread(Arc::new(move |stream| {
            pocket_llm::worker::serve(stream, &*serving, || {});
        }));
        let asked = Asked {
            ctx_size: Some(2048),
            parallel: Some(2),
            batch_size: Some(64),
            cache_bytes: Some(0),
            no_drafts: true,
            ..Asked::default()
        };
        let header = Gguf::read(&folder.path().join("a.gguf")).unwrap();
        let one = plan(&header, &asked, Kernels::default(), None).unwrap();
        let mut settings = PoolSettings {
            engine,
            asked,
            kernels: Kernels::default(),
            memory: Some(one.needs.total() * models + WEIGHTS / 2),
            most_loaded: 4,
            keep_alive: None,
            placed: Placed::default(),
            drafts: Drafts::default(),
        };
        change(&mut settings);
        Self {
            folder,
            models: backend,
            pool: Pool::new(settings.clone()),
            settings,
        }
    }

    fn model(&self, name: &str) -> Model {
        Model {
            name: name.into(),
            path: self.folder.path().join(format!("{name}.gguf")),
            entry: None,
        }
    }

    async fn lease(&self, name: &str) -> Lease {
        self.pool.lease(&self.model(name), false).await.unwrap()
    }

    /// One whole request.
    async fn ask(&self, name: &str) -> Told {
        let lease = self.lease(name).await;
        read(lease.engine().submit(request("say:yes|")).unwrap()).await
    }

    fn script(&self, name: &str) -> &Script {
        &self.models.scripts[name]
    }

    fn loads(&self) -> Vec<String> {
        self.models.loads.lock().unwrap().clone()
    }

    /// Names of the models in memory or on their way, sorted.
    fn here(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .pool
            .seen()
            .iter()
            .map(|seen| seen.facts.model.name.clone())
            .collect();
        names.sort();
        names
    }
}

/// A model file: a true header, and weights that take no room on the disk.
fn write(path: &Path) {
    let rows = WEIGHTS / 4 / 1024;
    let (header, length) = GgufFile::new("llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 2048)
        .u32("llama.embedding_length", 1024)
        .u32("llama.feed_forward_length", 1024)
        .u32("llama.attention.head_count", 8)
        .u32("llama.attention.head_count_kv", 1)
        .texts("tokenizer.ggml.tokens", &["a", "b", "c", "d"])
        .tensor("token_embd.weight", &[1024, 4], (0, 1, 4))
        .tensor("blk.0.ffn_up.weight", &[1024, rows], (0, 1, 4))
        .header();
    std::fs::write(path, header).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(length).unwrap();
}

fn answered(told: &Told) -> &Outcome {
    assert_eq!(told.text, "yes");
    told.outcome()
}

#[tokio::test]
async fn a_draft_model_comes_along_where_there_is_room_for_it() {
    for (models, comes) in [(2, true), (1, false)] {
        let mut draft = None;
        let machine = Machine::with_room_for(models, |settings| settings.asked.no_drafts = false);
        // The folder is known only now.
        let machine = Machine {
            pool: Pool::new(PoolSettings {
                drafts: Drafts::One(draft.insert(machine.model("b")).clone()),
                ..machine.settings.clone()
            }),
            ..machine
        };
        answered(&machine.ask("a").await);
        let expected = draft.map(|draft| draft.path).filter(|_| comes);
        assert_eq!(*machine.models.drafts.lock().unwrap(), [expected]);
        let planned = machine.pool.seen()[0].bytes;
        assert_eq!(planned > 2 * WEIGHTS, comes, "it counts: {planned}");
        if comes {
            // Nobody drafts for itself; the other one goes, because both together do not fit.
            answered(&machine.ask("b").await);
            assert_eq!(machine.models.drafts.lock().unwrap()[1], None);
        }
    }
}

#[tokio::test]
async fn the_first_request_loads_a_model_and_the_next_ones_find_it() {
    let machine = Machine::with_room_for(2, |_| {});
    assert_eq!(machine.here(), [""; 0]);
    for _ in 0..3 {
        answered(&machine.ask("a").await);
    }
    answered(&machine.ask("b").await);
    answered(&machine.ask("a").await);
    assert_eq!(machine.loads(), ["a", "b"]);
    let seen = machine.pool.seen();
    assert!(
        seen.iter()
            .all(|seen| seen.bytes > WEIGHTS && seen.idle.is_some())
    );
    assert_eq!(
        (machine.pool.totals().loads, machine.pool.totals().unloads),
        (2, 0)
    );
}

#[tokio::test]
async fn the_model_that_was_not_used_for_longest_makes_room() {
    let machine = Machine::with_room_for(2, |_| {});
    for (name, here) in [
        ("a", &["a"][..]),
        ("b", &["a", "b"]),
        ("a", &["a", "b"]),
        ("c", &["a", "c"]),
        ("b", &["b", "c"]),
    ] {
        answered(&machine.ask(name).await);
        assert_eq!(machine.here(), here, "after {name}");
        // Times of use are told apart by the millisecond.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(machine.loads(), ["a", "b", "c", "b"]);
    assert_eq!(
        (machine.pool.totals().loads, machine.pool.totals().unloads),
        (4, 2)
    );
}

#[tokio::test]
async fn the_number_of_models_is_a_limit_too() {
    let machine = Machine::with_room_for(3, |settings| settings.most_loaded = 1);
    for name in NAMES {
        answered(&machine.ask(name).await);
        assert_eq!(machine.here(), [name]);
    }
}

#[tokio::test]
async fn a_busy_model_is_waited_for_and_comes_back_after_the_other() {
    let machine = Machine::with_room_for(1, |_| {});
    answered(&machine.ask("a").await);
    machine.script("a").hold();
    let first = machine.lease("a").await;
    let running = first.engine().submit(request("say:one|")).unwrap();
    let second = machine.lease("b").await;
    let other = second.engine().submit(request("say:two|")).unwrap();
    until("the model must go", || machine.pool.seen()[0].leaving).await;
    // Whoever asks for the busy model now does not keep the other one waiting.
    let third = machine.lease("a").await;
    let again = third.engine().submit(request("say:three|")).unwrap();
    assert_eq!(machine.loads(), ["a"]);
    assert_eq!(machine.here(), ["a", "a", "b"]);
    machine.script("a").open();
    assert_eq!(read(running).await.text, "one");
    assert_eq!(
        machine.loads(),
        ["a"],
        "it stays while its request has a lease"
    );
    drop(first);
    assert_eq!(read(other).await.text, "two");
    assert_eq!(machine.loads(), ["a", "b"]);
    drop(second);
    assert_eq!(read(again).await.text, "three");
    assert_eq!(machine.loads(), ["a", "b", "a"]);
    until("one is left", || machine.here() == ["a"]).await;
}

/// Requests for one model that never end, as three clients send them: each has its next one before it drops its last one, so that the
/// model is in use at every moment. Who asks for another model gets it all the same, one after the other: from the moment on that a
/// model must make room, new requests for it wait behind the newcomer.
#[tokio::test]
async fn traffic_without_a_gap_starves_no_other_model() {
    let machine = Arc::new(Machine::with_room_for(1, |settings| {
        settings.engine.config.places = 64;
    }));
    let over = Arc::new(AtomicBool::new(false));
    let traffic: Vec<_> = (0..3)
        .map(|_| {
            let (machine, over) = (Arc::clone(&machine), Arc::clone(&over));
            tokio::spawn(async move {
                let mut answers = 0;
                let mut lease = machine.lease("a").await;
                while !over.load(Ordering::Relaxed) {
                    let generation = lease.engine().submit(request("say:yes|")).unwrap();
                    let next = machine.lease("a").await;
                    answered(&read(generation).await);
                    answers += 1;
                    lease = next;
                }
                answers
            })
        })
        .collect();
    until("it answers", || machine.loads() == ["a"]).await;
    for _ in 0..3 {
        let both = async { tokio::join!(machine.ask("b"), machine.ask("c")) };
        let (b, c) = timeout(Duration::from_mins(1), both)
            .await
            .expect("both are served");
        answered(&b);
        answered(&c);
    }
    over.store(true, Ordering::Relaxed);
    for client in traffic {
        assert!(client.await.unwrap() > 0);
    }
    let loads = machine.loads();
    for name in ["b", "c"] {
        assert_eq!(
            loads.iter().filter(|load| *load == name).count(),
            3,
            "{loads:?}"
        );
    }
}

#[tokio::test]
async fn a_busy_model_stays_when_nobody_waits_any_more() {
    let machine = Machine::with_room_for(1, |_| {});
    machine.script("a").hold();
    let first = machine.lease("a").await;
    let running = first.engine().submit(request("say:one|")).unwrap();
    let second = machine.lease("b").await;
    until("the model must go", || {
        machine.pool.seen().iter().any(|seen| seen.leaving)
    })
    .await;
    drop(second);
    until("it may stay", || machine.here() == ["a"]).await;
    assert!(!machine.pool.seen()[0].leaving);
    machine.script("a").open();
    assert_eq!(read(running).await.text, "one");
    drop(first);
    answered(&machine.ask("a").await);
    assert_eq!(machine.loads(), ["a"]);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_the_sum_and_nobody_goes_for_it() {
    let machine = Machine::with_room_for(0, |_| {});
    let lease = machine.lease("a").await;
    let told = read(lease.engine().submit(request("say:yes|")).unwrap()).await;
    let last = told.events.last().unwrap();
    let pocket_llm::engine::Event::Failed(EngineError::Unloadable(text)) = last else {
        panic!("{last:?}");
    };
    assert!(
        text.starts_with("a with --ctx-size 2048") && text.contains("weights 2.0 GiB +"),
        "{text}"
    );
    drop(lease);
    until("it is forgotten", || machine.here().is_empty()).await;
    assert_eq!(machine.loads(), [""; 0]);
}

#[tokio::test]
async fn a_model_that_can_not_be_loaded_is_told_and_forgotten() {
    let machine = Machine::with_room_for(2, |_| {});
    answered(&machine.ask("a").await);
    machine.models.broken.lock().unwrap().insert("b".into());
    let lease = machine.lease("b").await;
    let told = read(lease.engine().submit(request("say:yes|")).unwrap()).await;
    let last = format!("{:?}", told.events.last().unwrap());
    assert!(
        last.contains("NotReady") && last.contains("b is broken"),
        "{last}"
    );
    drop(lease);
    until("it is forgotten", || machine.here() == ["a"]).await;
    machine.models.broken.lock().unwrap().clear();
    // The same file is not tried again at once, which would cost others their room each time; a mended one is.
    let again = machine.pool.lease(&machine.model("b"), false).await;
    let reason = EngineError::Unloadable("b is broken".into());
    assert_eq!(again.unwrap_err(), reason);
    write(&machine.model("b").path);
    answered(&machine.ask("b").await);
    assert_eq!(machine.here(), ["a", "b"]);
    assert_eq!(machine.loads(), ["a", "b", "b"]);
}

#[tokio::test]
async fn the_default_model_is_tried_again_by_itself() {
    let machine = Machine::with_room_for(1, |_| {});
    machine.models.broken.lock().unwrap().insert("a".into());
    let lease = machine.pool.lease(&machine.model("a"), true).await.unwrap();
    until("it failed", || {
        matches!(lease.engine().state(), EngineState::Failed { .. })
    })
    .await;
    drop(lease);
    machine.models.broken.lock().unwrap().clear();
    until("it is back", || {
        let seen = machine.pool.seen_of(&machine.model("a").path).unwrap();
        matches!(seen.state, EngineState::Ready(_))
    })
    .await;
}

#[tokio::test]
async fn a_damaged_file_is_told_before_anybody_goes() {
    let machine = Machine::with_room_for(1, |_| {});
    answered(&machine.ask("a").await);
    let path = machine.model("b").path;
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let error = machine
        .pool
        .lease(&machine.model("b"), false)
        .await
        .unwrap_err();
    assert!(matches!(error, EngineError::Unloadable(_)), "{error:?}");
    assert_eq!(machine.here(), ["a"]);
}

#[tokio::test]
async fn a_model_that_nobody_asks_for_goes_and_comes_back() {
    let machine = Machine::with_room_for(2, |settings| {
        settings.keep_alive = Some(Duration::from_millis(50));
    });
    let lease = machine.lease("a").await;
    answered(&machine.ask("b").await);
    until("the idle one is gone", || machine.here() == ["a"]).await;
    drop(lease);
    until("the other one too", || machine.here().is_empty()).await;
    answered(&machine.ask("a").await);
    assert_eq!(machine.loads(), ["a", "b", "a"]);
}

#[tokio::test]
async fn the_end_reaches_everyone_also_who_waits_for_room() {
    let machine = Machine::with_room_for(1, |_| {});
    machine.script("a").hold();
    let first = machine.lease("a").await;
    let running = first.engine().submit(request("say:one|")).unwrap();
    let second = machine.lease("b").await;
    let waiting = second.engine().submit(request("say:two|")).unwrap();
    machine.pool.close();
    let late = machine.pool.lease(&machine.model("a"), false).await;
    assert_eq!(late.unwrap_err(), EngineError::ShuttingDown);
    let pool = machine.pool.clone();
    let end = tokio::spawn(async move { pool.shutdown().await });
    for generation in [running, waiting] {
        let told = read(generation).await;
        let last = told.events.last().unwrap();
        assert_eq!(
            *last,
            pocket_llm::engine::Event::Failed(EngineError::ShuttingDown)
        );
    }
    machine.script("a").open();
    end.await.unwrap();
    assert_eq!(machine.here(), [""; 0]);
}

#[tokio::test]
async fn a_crowd_with_three_models_and_room_for_two_is_served_to_the_last() {
    let machine = Arc::new(Machine::with_room_for(2, |settings| {
        settings.engine.config.places = 64;
    }));
    let asking: Vec<_> = (0..60)
        .map(|index| {
            let machine = Arc::clone(&machine);
            tokio::spawn(async move {
                let name = NAMES[index * 7 % 3];
                answered(&machine.ask(name).await);
            })
        })
        .collect();
    for asked in asking {
        asked.await.unwrap();
    }
    assert!(machine.here().len() <= 2);
    assert_eq!(machine.pool.in_flight(), 0);
}

#[tokio::test]
async fn a_model_that_has_a_successor_goes_although_it_need_not_make_way() {
    let machine = Machine::with_room_for(1, |_| {});
    machine.script("a").hold();
    let first = machine.lease("a").await;
    let running = first.engine().submit(request("say:one|")).unwrap();
    let second = machine.lease("b").await;
    until("the model must go", || machine.pool.seen()[0].leaving).await;
    let third = machine.lease("a").await;
    let again = third.engine().submit(request("say:two|")).unwrap();
    drop(second);
    machine.script("a").open();
    assert_eq!(read(running).await.text, "one");
    drop(first);
    assert_eq!(read(again).await.text, "two");
    drop(third);
    until("one is left", || machine.here() == ["a"]).await;
    assert!(!machine.pool.seen()[0].leaving);
    answered(&machine.ask("a").await);
    assert_eq!(machine.loads(), ["a", "a"]);
}

#[tokio::test]
async fn a_model_that_is_unloaded_does_not_come_back_for_who_leaves() {
    let machine = Machine::with_room_for(1, |_| {});
    machine.script("a").hold();
    let first = machine.lease("a").await;
    let running = first.engine().submit(request("say:one|")).unwrap();
    let pool = machine.pool.clone();
    let path = machine.model("a").path;
    let unloading = tokio::spawn(async move { pool.unload(&path).await });
    until("it must go", || machine.pool.seen()[0].leaving).await;
    drop(machine.lease("b").await);
    until("the other one is forgotten", || machine.here() == ["a"]).await;
    assert!(machine.pool.seen()[0].leaving);
    machine.script("a").open();
    assert_eq!(read(running).await.text, "one");
    drop(first);
    unloading.await.unwrap();
    assert_eq!(machine.here(), [""; 0]);
}

#[tokio::test]
async fn nobody_goes_for_a_request_that_has_left() {
    let machine = Machine::with_room_for(1, |_| {});
    answered(&machine.ask("a").await);
    drop(machine.lease("b").await);
    until("it is forgotten", || machine.here() == ["a"]).await;
    assert!(!machine.pool.seen()[0].leaving);
    assert_eq!(machine.loads(), ["a"]);
    assert_eq!(machine.pool.totals().unloads, 0);
}

#[tokio::test]
async fn another_file_at_the_same_place_is_another_model() {
    let machine = Machine::with_room_for(1, |_| {});
    answered(&machine.ask("a").await);
    let path = machine.model("a").path;
    let new = path.with_extension("new");
    write(&new);
    std::fs::rename(&new, &path).unwrap();
    answered(&machine.ask("a").await);
    assert_eq!(machine.loads(), ["a", "a"]);
    until("one is left", || machine.here() == ["a"]).await;
    // What is only gone from the disk is still what it was.
    std::fs::remove_file(&path).unwrap();
    answered(&machine.ask("a").await);
    assert_eq!(machine.loads(), ["a", "a"]);
}

#[tokio::test]
async fn what_embeddings_take_is_counted_while_they_have_it() {
    let machine = Machine::with_room_for(2, |settings| {
        // For two models, and for one beside what embeddings take.
        settings.memory = settings.memory.map(|two| two + WEIGHTS / 4);
    });
    answered(&machine.ask("a").await);
    let lease = machine.lease("a").await;
    let embed = Question::Embed {
        client: "test".into(),
        inputs: vec![Prompt::Text("x".into())],
        deadline_ms: None,
    };
    let embedded = lease.engine().ask(embed).await;
    assert!(
        matches!(embedded, Ok(Answer::Embeddings(_))),
        "{embedded:?}"
    );
    until("the pool knows", || {
        lease.engine().load().worker.embedding_bytes == EMBEDDING_BYTES
    })
    .await;
    drop(lease);
    let seen = machine.pool.seen();
    assert!(
        seen[0].bytes > WEIGHTS + EMBEDDING_BYTES,
        "{}",
        seen[0].bytes
    );
    answered(&machine.ask("b").await);
    assert_eq!(machine.here(), ["b"], "the other one had to go");
}
