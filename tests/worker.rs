//! The worker as a process: its death in every phase, broken frames, a flood of log lines, foreign builds, and the ends that
//! front and worker make for each other. This program is its own worker and its own front: `main` looks at the arguments.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "worker/frames.rs"]
mod frames;
#[path = "worker/phases.rs"]
mod phases;
#[path = "worker/poison.rs"]
mod poison;
#[path = "worker/quarantine.rs"]
mod quarantine;
#[path = "support/scripted.rs"]
mod scripted;

use libtest_mimic::{Arguments, Failed, Trial};
use pocket_llm::engine::wire::{self, BUILD, FromWorker, ToWorker};
use pocket_llm::engine::{
    EngineError, EngineHandle, EngineOptions, EngineState, Event, Generation, Launch, WorkerStats,
};
use pocket_llm::worker::process;
use rustix::process::{Pid, Signal, kill_process};
use scripted::{PATIENCE, Script, ScriptedBackend, options, read, request, until};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match words.get(1).map(String::as_str) {
        Some("as-worker") => act_as_worker(&words[2]),
        Some("as-front") => act_as_front(words.get(2)),
        _ => {
            note_panics();
            libtest_mimic::run(&Arguments::from_args(), trials()).exit()
        }
    }
}

/// Panics of the engines' own threads, in this process.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn note_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("");
        // The others are trials, which fail by it.
        if ["engine", "reader", "tokeniser", "spawner", "reaper"].contains(&name) {
            PANICS.lock().unwrap().push(format!("{name}: {panic}"));
        }
        print(panic);
    }));
}

fn trials() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:path),* $(,)?) => { vec![$(Trial::test(stringify!($name), || run($name()))),*] };
    }
    trials![
        a_worker_process_answers,
        eight_streams_end_when_their_worker_is_killed,
        what_waits_is_served_by_the_next_worker,
        a_worker_killed_while_loading_is_started_again,
        a_worker_that_crashes_while_idle_is_replaced,
        a_stopped_worker_is_ended_and_replaced,
        a_worker_that_hangs_up_and_stays_is_ended,
        a_storm_of_cancels_costs_nobody_else,
        a_deadline_holds_while_there_is_no_worker,
        a_worker_that_computes_is_not_ended_for_being_slow,
        a_worker_that_never_loads_ends_in_errors_not_in_waiting,
        frames_cut_at_every_byte_end_in_a_restart,
        nonsense_frames_end_in_a_restart,
        a_foreign_build_is_refused,
        a_flood_on_standard_error_stops_nothing,
        signals_to_the_whole_group_leave_the_worker_alone,
        a_killed_front_takes_its_worker_along,
        a_killed_front_takes_a_stopped_worker_along,
        a_worker_without_a_front_refuses_to_start,
        fifty_kills_leave_nothing_behind,
        frames::damaged_frames_of_a_worker_end_in_errors_and_mix_nothing_up,
        frames::damaged_frames_of_a_front_end_a_worker_and_mix_nothing_up,
        frames::any_bytes_are_a_frame_or_an_error,
        phases::a_worker_may_die_while_it_loads,
        phases::a_worker_may_die_with_a_queue,
        phases::a_worker_may_die_in_a_prompt,
        phases::a_worker_may_die_in_an_answer,
        phases::a_worker_may_die_while_its_engine_drains,
        phases::a_worker_may_die_while_it_is_unloaded,
        phases::a_front_may_be_killed_in_any_phase_and_no_worker_stays,
        quarantine::who_crashes_its_worker_is_refused_and_its_neighbours_are_served,
        quarantine::several_poisons_at_once_are_all_found,
        quarantine::whose_death_was_ordered_from_outside_is_never_refused,
        quarantine::who_stops_its_worker_is_given_up_and_not_refused,
        quarantine::who_crashes_its_worker_after_speaking_is_found_too,
        quarantine::questions_that_crash_the_worker_are_refused,
        quarantine::a_suspect_that_leaves_or_is_late_holds_nobody_up,
        quarantine::a_suspect_that_gets_far_lets_others_in,
        quarantine::a_model_that_answers_nothing_is_not_the_requests_fault,
    ]
}

fn run(test: impl Future<Output = ()> + Send + 'static) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::time::timeout(3 * PATIENCE, test)
            .await
            .expect("the test ended in time");
    });
    Ok(())
}

/// What `engine` processes of these tests do.
fn act_as_worker(part: &str) {
    let socket = || UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    match part {
        "steady" | "slow" | "flood" | "crash-when-idle" => {
            let script = Arc::new(Script::default());
            script.take_time(Duration::from_millis(2));
            if part == "slow" {
                script.burn_time(Duration::from_secs(1));
            }
            if part == "flood" {
                std::thread::spawn(|| {
                    let long = "x".repeat(100_000);
                    for n in 0..300 {
                        eprintln!("{n} {long}\n\u{1b}[31mred {n}");
                    }
                });
            }
            if part == "crash-when-idle" {
                std::thread::spawn(|| {
                    std::thread::sleep(Duration::from_millis(200));
                    std::process::abort();
                });
            }
            process::main(&ScriptedBackend { script }).unwrap();
        }
        "foreign" => {
            wire::write(
                &mut socket(),
                &FromWorker::Hello {
                    build: "another".into(),
                },
            )
            .unwrap();
            std::thread::sleep(PATIENCE);
        }
        "silent-load" => {
            wire::write(
                &mut socket(),
                &FromWorker::Hello {
                    build: BUILD.into(),
                },
            )
            .unwrap();
            std::thread::sleep(PATIENCE);
        }
        "hangs-up" => {
            let build = BUILD.into();
            wire::write(&mut socket(), &FromWorker::Hello { build }).unwrap();
            socket().shutdown(std::net::Shutdown::Both).unwrap();
            std::thread::sleep(2 * PATIENCE);
        }
        "dies-at-once" => exit_with_3(),
        other => {
            let (kind, notes) = other.split_once(':').expect("no such part");
            let script = Arc::new(Script::default());
            let (step, load) = match kind {
                "sleepy" => (50, 300),
                _ => (2, 0),
            };
            script.take_time(Duration::from_millis(step));
            let notes = notes.into();
            let load = Duration::from_millis(load);
            let backend = poison::PoisonedBackend {
                script,
                notes,
                load,
            };
            process::main(&backend).unwrap();
        }
    }
}

#[expect(clippy::exit, reason = "the end that is tested")]
fn exit_with_3() -> ! {
    std::process::exit(3);
}

/// Serves a request for ever with a worker of its own, and says who that is.
#[expect(clippy::print_stdout, reason = "the test reads it")]
fn act_as_front(phase: Option<&String>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        if let Some(phase) = phase {
            return phases::stay_in(phase).await;
        }
        let engine = EngineHandle::start(with_worker("steady", 2, 2)).unwrap();
        engine.loaded().await;
        let _generation = engine.submit(request("loop:x|")).unwrap();
        println!("{}", engine.load().pid.unwrap());
        tokio::time::sleep(PATIENCE).await;
    });
}

fn with_worker(part: &str, parallel: u32, queue: u32) -> EngineOptions {
    let mut options = options(&Arc::default(), parallel, queue);
    let program = std::env::current_exe().unwrap();
    options.launch = Launch::Process(vec![program.into(), "as-worker".into(), part.into()]);
    options
}

async fn start(part: &str, parallel: u32, queue: u32) -> EngineHandle {
    let engine = EngineHandle::start(with_worker(part, parallel, queue)).unwrap();
    engine.loaded().await;
    engine
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn worker_of(engine: &EngineHandle) -> u32 {
    engine.load().pid.expect("a worker process")
}

/// Whether the process is gone, or a zombie that its parent has not looked at yet.
fn is_gone(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(_) => true,
    }
}

async fn first_text(generation: &mut Generation) {
    while !matches!(
        generation.next().await.expect("no end yet"),
        Event::Text { .. }
    ) {}
}

async fn answers(engine: &EngineHandle) {
    let told = read(engine.submit(request("say:alive|")).unwrap()).await;
    assert_eq!(told.text, "alive", "{told:?}");
}

fn died(told: &scripted::Told) -> &str {
    match told.events.last() {
        Some(Event::Failed(EngineError::EngineDied(reason))) => reason,
        other => panic!("{other:?}"),
    }
}

async fn a_worker_process_answers() {
    let engine = start("steady", 2, 2).await;
    answers(&engine).await;
    let pid = worker_of(&engine);
    assert_ne!(pid, std::process::id());
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("API_KEY"));
    engine.shutdown().await;
    assert!(is_gone(pid));
}

async fn eight_streams_end_when_their_worker_is_killed() {
    let engine = start("steady", 8, 0).await;
    let mut streams: Vec<_> = (0..8)
        .map(|_| engine.submit(request("loop:x|")).unwrap())
        .collect();
    for stream in &mut streams {
        first_text(stream).await;
    }
    kill(worker_of(&engine), Signal::KILL);
    let killed = Instant::now();
    for stream in streams {
        assert!(died(&read(stream).await).contains("signal 9"));
    }
    assert!(
        killed.elapsed() < Duration::from_secs(5),
        "{:?}",
        killed.elapsed()
    );
    answers(&engine).await;
    assert_eq!(engine.load().restarts, 1);
}

async fn what_waits_is_served_by_the_next_worker() {
    let engine = start("steady", 1, 4).await;
    let mut running = engine.submit(request("loop:x|")).unwrap();
    first_text(&mut running).await;
    let waiting: Vec<_> = (0..3)
        .map(|n| engine.submit(request(&format!("say:{n}|"))).unwrap())
        .collect();
    kill(worker_of(&engine), Signal::KILL);
    died(&read(running).await);
    for (n, generation) in waiting.into_iter().enumerate() {
        let told = read(generation).await;
        assert_eq!(told.text, n.to_string());
        let accepted = told
            .events
            .iter()
            .filter(|event| matches!(event, Event::Accepted { .. }));
        assert!(
            accepted.count() <= 1,
            "a second worker is no second acceptance"
        );
    }
}

async fn a_worker_killed_while_loading_is_started_again() {
    let engine = EngineHandle::start(with_worker("silent-load", 1, 1)).unwrap();
    let generation = engine.submit(request("say:x|")).unwrap();
    for restarts in 0..4 {
        until("a worker is there", || {
            engine.load().pid.is_some() && engine.load().restarts == restarts
        })
        .await;
        kill(worker_of(&engine), Signal::KILL);
        until("it is replaced", || engine.load().restarts == restarts + 1).await;
    }
    let told = read(generation).await;
    assert!(
        matches!(
            told.events.last(),
            Some(Event::Failed(EngineError::NotReady(_)))
        ),
        "{told:?}"
    );
}

async fn a_worker_that_crashes_while_idle_is_replaced() {
    let engine = start("crash-when-idle", 1, 1).await;
    until("it crashed", || engine.load().restarts >= 1).await;
    engine.shutdown().await;
}

async fn a_stopped_worker_is_ended_and_replaced() {
    let mut options = with_worker("steady", 1, 1);
    options.stall = Duration::from_millis(300);
    let engine = EngineHandle::start(options).unwrap();
    engine.loaded().await;
    let mut running = engine.submit(request("loop:x|")).unwrap();
    first_text(&mut running).await;
    let pid = worker_of(&engine);
    kill(pid, Signal::STOP);
    assert!(died(&read(running).await).contains("no progress"));
    assert!(is_gone(pid));
    answers(&engine).await;
}

async fn a_worker_that_hangs_up_and_stays_is_ended() {
    let engine = EngineHandle::start(with_worker("hangs-up", 1, 1)).unwrap();
    until("a worker is there", || engine.load().pid.is_some()).await;
    let pid = worker_of(&engine);
    match engine.loaded().await {
        EngineState::Restarting { reason } => {
            assert_eq!(reason, "it closed its connection and did not end");
        }
        other => panic!("{other:?}"),
    }
    until("it is gone", || is_gone(pid)).await;
}

async fn a_deadline_holds_while_there_is_no_worker() {
    let mut options = with_worker("silent-load", 1, 1);
    options.stall = Duration::from_millis(500);
    let engine = EngineHandle::start(options).unwrap();
    let mut late = request("say:x|");
    late.deadline_ms = Some(50);
    let told = read(engine.submit(late).unwrap()).await;
    assert_eq!(
        told.events.last(),
        Some(&Event::Failed(EngineError::DeadlineExceeded))
    );
}

async fn a_storm_of_cancels_costs_nobody_else() {
    let engine = start("steady", 1, 4).await;
    let mut stream = engine.submit(request("loop:x|")).unwrap();
    first_text(&mut stream).await;
    let long = "y".repeat(7000);
    for _ in 0..3000 {
        // No place is free for a moment: that is the front's way to say wait.
        if let Ok(generation) = engine.submit(request(&long)) {
            drop(generation);
        }
        tokio::task::yield_now().await;
    }
    let told = read(stream).await;
    assert!(
        matches!(told.events.last(), Some(Event::Finished(_))),
        "{:?}",
        told.events.last()
    );
    assert_eq!(engine.load().restarts, 0);
    until("all places are free again", || engine.in_flight() == 0).await;
}

async fn a_worker_that_computes_is_not_ended_for_being_slow() {
    let mut options = with_worker("slow", 1, 1);
    options.stall = Duration::from_millis(300);
    let engine = EngineHandle::start(options).unwrap();
    engine.loaded().await;
    let told = read(engine.submit(request("say:s|")).unwrap()).await;
    assert_eq!((told.text.as_str(), engine.load().restarts), ("s", 0));
}

async fn a_worker_that_never_loads_ends_in_errors_not_in_waiting() {
    let engine = EngineHandle::start(with_worker("dies-at-once", 1, 4)).unwrap();
    for _ in 0..4 {
        let told = read(engine.submit(request("say:x|")).unwrap()).await;
        match told.events.last() {
            Some(Event::Failed(EngineError::NotReady(reason))) => {
                assert!(reason.contains("status 3"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        engine.state(),
        EngineState::Restarting { .. } | EngineState::Loading { .. }
    ));
}

/// An engine whose worker says these bytes, then closes.
fn saying(bytes: Vec<u8>) -> EngineOptions {
    let mut options = options(&Arc::default(), 1, 1);
    options.launch = Launch::Thread(Arc::new(move |mut stream| {
        // The front may hang up before everything is said.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // What it still says is read, so that our bytes are not lost in a reset.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }));
    options
}

/// The frames of a worker that loads and answers request 1.
fn whole_talk() -> Vec<u8> {
    let frames = [
        FromWorker::Hello {
            build: BUILD.into(),
        },
        FromWorker::Loading { progress: 0.5 },
        FromWorker::Loaded(Box::default()),
        FromWorker::Step {
            events: vec![
                (
                    1,
                    Event::Accepted {
                        prompt_tokens: 1,
                        position: 0,
                    },
                ),
                (1, Event::Started { cached_tokens: 0 }),
                (
                    1,
                    Event::Text {
                        text: "hi".into(),
                        thinking: false,
                        logprobs: Vec::new(),
                    },
                ),
            ],
            stats: WorkerStats::default(),
        },
    ];
    frames
        .iter()
        .flat_map(|frame| wire::encode(frame).unwrap())
        .collect()
}

async fn frames_cut_at_every_byte_end_in_a_restart() {
    let talk = whole_talk();
    for cut in 0..=talk.len() {
        let engine = EngineHandle::start(saying(talk[..cut].to_vec())).unwrap();
        let generation = engine.submit(request("say:x|")).unwrap();
        let told = read(generation).await;
        let last = told.events.last();
        assert!(
            matches!(
                last,
                Some(Event::Failed(
                    EngineError::EngineDied(_) | EngineError::NotReady(_) | EngineError::Refused(_)
                ))
            ),
            "cut at {cut}: {last:?}"
        );
        assert!(told.text.is_empty() || told.text == "hi");
    }
}

async fn nonsense_frames_end_in_a_restart() {
    let hello = wire::encode(&FromWorker::Hello {
        build: BUILD.into(),
    })
    .unwrap();
    let framed = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        [hello.as_slice(), &length, bytes].concat()
    };
    let oversized = [hello.as_slice(), &u32::MAX.to_le_bytes()].concat();
    let loaded_first = wire::encode(&FromWorker::Loaded(Box::default())).unwrap();
    let nonsense = [
        framed(b"not json"),
        framed(b""),
        framed(b"{\"unknown\":1}"),
        framed(&[0xff; 9]),
        oversized,
        loaded_first,
    ];
    for bytes in nonsense {
        let engine = EngineHandle::start(saying(bytes)).unwrap();
        let told = read(engine.submit(request("say:x|")).unwrap()).await;
        assert!(
            matches!(
                told.events.last(),
                Some(Event::Failed(EngineError::NotReady(_)))
            ),
            "{told:?}"
        );
    }
    // The other way round: a worker that is told nonsense ends, and does not panic.
    for bytes in [
        framed(b"not json"),
        u32::MAX.to_le_bytes().to_vec(),
        hello.clone(),
    ] {
        let (mut front, worker) = UnixStream::pair().unwrap();
        front.write_all(&bytes).unwrap();
        front.shutdown(std::net::Shutdown::Write).unwrap();
        let backend = ScriptedBackend {
            script: Arc::default(),
        };
        tokio::task::spawn_blocking(move || pocket_llm::worker::serve(worker, &backend, || {}))
            .await
            .unwrap();
    }
}

async fn a_foreign_build_is_refused() {
    let engine = start("foreign", 1, 1).await;
    match engine.state() {
        EngineState::Restarting { reason } => assert!(reason.contains("another build"), "{reason}"),
        other => panic!("{other:?}"),
    }
    // And a worker refuses a foreign front.
    let (mut front, worker) = UnixStream::pair().unwrap();
    let config = options(&Arc::default(), 1, 1).config;
    wire::write(
        &mut front,
        &ToWorker::Load {
            build: "another".into(),
            config: Box::new(config),
        },
    )
    .unwrap();
    let backend = ScriptedBackend {
        script: Arc::default(),
    };
    tokio::task::spawn_blocking(move || pocket_llm::worker::serve(worker, &backend, || {}))
        .await
        .unwrap();
    assert!(matches!(
        wire::read(&mut front).unwrap(),
        Some(FromWorker::Hello { .. })
    ));
    assert!(matches!(
        wire::read(&mut front).unwrap(),
        Some(FromWorker::LoadFailed { .. })
    ));
}

async fn a_flood_on_standard_error_stops_nothing() {
    let engine = start("flood", 1, 1).await;
    for _ in 0..10 {
        answers(&engine).await;
    }
    assert_eq!(engine.load().restarts, 0);
}

async fn signals_to_the_whole_group_leave_the_worker_alone() {
    let engine = start("steady", 1, 1).await;
    let pid = worker_of(&engine);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill(pid, signal);
        answers(&engine).await;
    }
    assert_eq!((worker_of(&engine), engine.load().restarts), (pid, 0));
}

/// Starts a front of its own, stops its worker if asked to, kills the front, and waits for the worker to go.
async fn kill_a_front(stop_the_worker: bool) {
    let mut front = Command::new(std::env::current_exe().unwrap())
        .arg("as-front")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(front.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let worker: u32 = line.trim().parse().unwrap();
    if stop_the_worker {
        kill(worker, Signal::STOP);
    }
    front.kill().unwrap();
    front.wait().unwrap();
    until("the worker is gone", || is_gone(worker)).await;
}

async fn a_killed_front_takes_its_worker_along() {
    kill_a_front(false).await;
}

async fn a_killed_front_takes_a_stopped_worker_along() {
    kill_a_front(true).await;
}

async fn a_worker_without_a_front_refuses_to_start() {
    let alone = Command::new(std::env::current_exe().unwrap())
        .args(["as-worker", "steady"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(!alone.status.success());
    assert!(String::from_utf8_lossy(&alone.stderr).contains("socket"));
}

async fn fifty_kills_leave_nothing_behind() {
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let engine = start("steady", 1, 1).await;
    answers(&engine).await;
    let before = files();
    let mut gone = Vec::new();
    for _ in 0..50 {
        let pid = worker_of(&engine);
        kill(pid, Signal::KILL);
        gone.push(pid);
        until("it is replaced", || {
            engine.load().pid.is_some_and(|new| new != pid)
        })
        .await;
        answers(&engine).await;
    }
    assert!(gone.into_iter().all(is_gone));
    // Other tests of this program open and close files beside us.
    until("the files are closed", || files() <= before + 8).await;
}
