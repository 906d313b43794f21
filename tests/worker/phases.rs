//! Death in every phase: of the worker, by four signals, and of the front over its worker.

use crate::scripted::{read, request, until};
use crate::{answers, died, first_text, is_gone, kill, with_worker, worker_of};
use futures_util::future::join_all;
use pocket_llm::engine::{EngineError, EngineHandle, EngineState, Event, Generation};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How a worker ends, and what its clients read.
const ENDS: [(Signal, &str); 4] = [
    (Signal::KILL, "signal 9"),
    (Signal::SEGV, "signal 11"),
    (Signal::ABORT, "signal 6"),
    (Signal::STOP, "no progress"),
];

/// A silent worker is ended after this time; it sleeps in its steps, and for a while when it loads.
const STALL: Duration = Duration::from_millis(1500);

fn begin(parallel: u32) -> EngineHandle {
    let mut options = with_worker("sleepy:", parallel, 8);
    (options.stall, options.load_stall) = (STALL, STALL);
    EngineHandle::start(options).unwrap()
}

/// Sends a signal until it works: the standard library lets the first SEGV pass that is no fault of the program's own.
async fn strike(pid: u32, signal: Signal) {
    let process = Pid::from_raw(pid.cast_signed()).unwrap();
    loop {
        // It may be gone by now.
        let _ = kill_process(process, signal);
        if signal != Signal::SEGV || is_gone(pid) {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

fn ask(engine: &EngineHandle, text: &str) -> Generation {
    engine.submit(request(text)).unwrap()
}

/// A prompt of many steps, which shares nothing with one of another letter.
fn long(letter: &str) -> String {
    format!("{}say:long|", letter.repeat(900))
}

async fn starts(generation: &mut Generation) {
    while !matches!(generation.next().await, Some(Event::Started { .. })) {}
}

/// Until then one of its threads may still hear that the front is going.
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('T')
}

async fn replaced(engine: &EngineHandle, pid: u32) {
    answers(engine).await;
    assert!(is_gone(pid));
    assert_eq!(engine.load().restarts, 1);
    engine.shutdown().await;
}

async fn for_each_end<F: Future<Output = ()>>(test: impl Fn(Signal, &'static str) -> F) {
    join_all(ENDS.map(|(signal, end)| test(signal, end))).await;
}

pub(crate) async fn a_worker_may_die_while_it_loads() {
    for_each_end(async |signal, _| {
        let engine = begin(2);
        let waiting = ask(&engine, "say:served|");
        until("a worker is there", || engine.load().pid.is_some()).await;
        let pid = worker_of(&engine);
        strike(pid, signal).await;
        assert_eq!(read(waiting).await.text, "served");
        replaced(&engine, pid).await;
    })
    .await;
}

pub(crate) async fn a_worker_may_die_with_a_queue() {
    for_each_end(async |signal, end| {
        let engine = begin(1);
        let mut running = ask(&engine, "loop:x|");
        first_text(&mut running).await;
        let waiting = [(); 3].map(|()| ask(&engine, "say:served|"));
        let pid = worker_of(&engine);
        strike(pid, signal).await;
        assert!(died(&read(running).await).contains(end));
        for generation in waiting {
            assert_eq!(read(generation).await.text, "served");
        }
        replaced(&engine, pid).await;
    })
    .await;
}

pub(crate) async fn a_worker_may_die_in_a_prompt() {
    for_each_end(async |signal, _| {
        let engine = begin(2);
        let mut both = ["x", "y"].map(|letter| ask(&engine, &long(letter)));
        for generation in &mut both {
            starts(generation).await;
        }
        let pid = worker_of(&engine);
        strike(pid, signal).await;
        for generation in both {
            let told = read(generation).await;
            assert_eq!(told.text, "long", "{signal:?}: {told:?}");
        }
        replaced(&engine, pid).await;
    })
    .await;
}

pub(crate) async fn a_worker_may_die_in_an_answer() {
    for_each_end(async |signal, end| {
        let engine = begin(8);
        let mut streams = [(); 8].map(|()| ask(&engine, "loop:x|"));
        for stream in &mut streams {
            first_text(stream).await;
        }
        let pid = worker_of(&engine);
        let struck = Instant::now();
        strike(pid, signal).await;
        for stream in streams {
            assert!(died(&read(stream).await).contains(end));
        }
        let limit = if signal == Signal::STOP {
            2 * STALL
        } else {
            Duration::from_secs(1)
        };
        assert!(
            struck.elapsed() < limit,
            "{signal:?}: {:?}",
            struck.elapsed()
        );
        replaced(&engine, pid).await;
    })
    .await;
}

pub(crate) async fn a_worker_may_die_while_its_engine_drains() {
    for_each_end(async |signal, end| {
        let engine = begin(1);
        let mut running = ask(&engine, "loop:x|");
        first_text(&mut running).await;
        let waiting = ask(&engine, "say:promised|");
        engine.close();
        let refused = engine.submit(request("say:x|")).map(drop);
        assert_eq!(refused, Err(EngineError::ShuttingDown));
        let pid = worker_of(&engine);
        strike(pid, signal).await;
        assert!(died(&read(running).await).contains(end));
        assert_eq!(read(waiting).await.text, "promised");
        engine.shutdown().await;
        assert!(is_gone(pid));
    })
    .await;
}

pub(crate) async fn a_worker_may_die_while_it_is_unloaded() {
    for_each_end(async |signal, _| {
        let engine = begin(1);
        let mut running = ask(&engine, "loop:x|");
        first_text(&mut running).await;
        let pid = worker_of(&engine);
        let began = Instant::now();
        if signal == Signal::STOP {
            strike(pid, signal).await;
        }
        let shutdown = tokio::spawn({
            let engine = engine.clone();
            async move { engine.shutdown().await }
        });
        // Either may be first.
        if signal != Signal::STOP {
            strike(pid, signal).await;
        }
        shutdown.await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{signal:?}: {:?}",
            began.elapsed()
        );
        assert!(is_gone(pid));
        assert!(matches!(engine.state(), EngineState::Stopped));
        assert_eq!(engine.load().pid, None, "none comes after it");
        let told = read(running).await;
        assert!(matches!(
            told.events.last(),
            Some(Event::Failed(
                EngineError::ShuttingDown | EngineError::EngineDied(_)
            ))
        ));
    })
    .await;
}

const FRONT_PHASES: [&str; 6] = [
    "loading",
    "queue",
    "prompt",
    "answer",
    "draining",
    "unloading",
];

/// A front that comes to a phase, says who its worker is, and stays there.
#[expect(clippy::print_stdout, reason = "the test reads it")]
pub(crate) async fn stay_in(phase: &str) {
    let engine = begin(1);
    let mut kept = Vec::new();
    match phase {
        "loading" => until("a worker is there", || engine.load().pid.is_some()).await,
        "prompt" => {
            let mut generation = ask(&engine, &long("x"));
            starts(&mut generation).await;
            kept.push(generation);
        }
        _ => {
            let mut stream = ask(&engine, "loop:x|");
            first_text(&mut stream).await;
            kept.push(stream);
        }
    }
    if phase == "queue" {
        kept.extend([(); 3].map(|()| ask(&engine, "say:x|")));
    }
    let pid = worker_of(&engine);
    if phase == "draining" {
        engine.close();
    }
    if phase == "unloading" {
        // It does not hear that it is to go, so this lasts as long as the patience with it.
        kill(pid, Signal::STOP);
        until("it stands still", || is_stopped(pid)).await;
        let engine = engine.clone();
        tokio::spawn(async move { engine.shutdown().await });
        sleep(Duration::from_millis(50)).await;
    }
    println!("{pid}");
    sleep(2 * crate::scripted::PATIENCE).await;
    drop(kept);
}

pub(crate) async fn a_front_may_be_killed_in_any_phase_and_no_worker_stays() {
    for phase in FRONT_PHASES {
        let mut front = Command::new(std::env::current_exe().unwrap())
            .args(["as-front", phase])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(front.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let worker: u32 = line.trim().parse().unwrap();
        assert!(!is_gone(worker), "{phase}");
        front.kill().unwrap();
        front.wait().unwrap();
        until("the worker is gone", || is_gone(worker)).await;
    }
}
