//! Cores and threads: what may be asked for, what is measured, and what happens when Android takes cores from a program in the
//! background.

use crate::models::test_model;
use crate::program::{Finished, Program};
use crate::server::{NDJSON, Server, greedy};
use pocket_llm::device::CoreSet;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Lets all threads of a process run on these cores only, as a move to another cpuset does.
fn confine(pid: u32, cores: &CoreSet) {
    let mut mask = CpuSet::new();
    cores.iter().for_each(|core| mask.set(core as usize));
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let name = thread.unwrap().file_name();
        let thread = Pid::from_raw(name.to_str().unwrap().parse().unwrap());
        // A thread may have ended meanwhile.
        let _ = sched_setaffinity(thread, &mask);
    }
}

#[tokio::test]
async fn an_answer_survives_the_loss_of_a_core() {
    let all = CoreSet::allowed().unwrap();
    if pocket_llm::device::allowed_threads() < 2 {
        eprintln!("skipped: there is one core here, and none to lose");
        return;
    }
    let server = Server::start(&["--threads", "2", "--log", "pocket_llm=debug"]).await;
    let worker = server.worker().await;
    let follows = async |times: usize, threads: &str| {
        let told = |program: &Program| {
            let log = program.errors();
            let lines = log
                .lines()
                .filter(|line| line.contains("another number of threads"));
            let lines: Vec<_> = lines.collect();
            lines.len() == times && lines[times - 1].contains(threads)
        };
        server.program.until("it follows", told).await;
    };
    // On one core first: two threads are slow where other tests have the cores too.
    let first: CoreSet = all.iter().take(1).collect();
    confine(worker, &first);
    // Long enough to be in the middle of it when the core goes.
    let mut prompt = greedy("Tell me a story.", 200);
    prompt["ignoreEos"] = true.into();
    let expected = server.answer(prompt.clone()).await["response"].clone();
    follows(1, "threads=1 threads_batch=1").await;

    confine(worker, &all);
    let mut stream = server.stream(NDJSON, &prompt).await;
    stream.speaks().await;
    follows(2, "threads=2 threads_batch=2").await;
    confine(worker, &first);
    let objects = stream.objects().await;
    let tokens = objects.iter().filter(|object| object["type"] == "token");
    let text: String = tokens
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert_eq!(Value::from(text), expected);
    follows(3, "threads=1 threads_batch=1").await;
    let log = server.program.errors();
    let warned = |line: &str| line.contains("WARN") && line.contains("other cores are allowed now");
    assert!(log.lines().any(warned), "{log}");

    assert_eq!(
        server.worker().await,
        worker,
        "the same process all the time"
    );
}

/// Threads of a process that have the name of its first one, and where each may run.
fn team(pid: u32) -> Vec<Option<CoreSet>> {
    let name = |thread: &str| fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm")).ok();
    let first = name(&pid.to_string());
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let threads = threads.map(|thread| thread.unwrap().file_name().into_string().unwrap());
    threads
        .filter(|thread| name(thread) == first)
        .map(|thread| CoreSet::allowed_to(Pid::from_raw(thread.parse().unwrap())))
        .collect()
}

#[tokio::test]
async fn a_team_stays_between_steps_whatever_the_environment_says() {
    if pocket_llm::device::allowed_threads() < 2 {
        eprintln!("skipped: there is one core here, and no team");
        return;
    }
    let model = test_model("gemma3-tiny.gguf");
    let program = Program::start(&["serve", "--port", "0", "--threads", "2"], |command| {
        command.arg(&model).env("OMP_THREAD_LIMIT", "1");
    });
    let server = Server::of(program, 1).await;
    server.becomes_ready().await;
    server.answer(greedy("Hello", 4)).await;
    let team = team(server.worker().await);
    assert_eq!(team, vec![CoreSet::allowed(); 2]);
}

/// Computes on each of some cores, until it is dropped.
struct Hogs(Arc<AtomicBool>);

impl Hogs {
    fn on(cores: &CoreSet) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for core in cores.iter() {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let _ = [core].into_iter().collect::<CoreSet>().pin();
                while !over.load(Ordering::Relaxed) {}
            });
        }
        Self(over)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_thread_is_left_out_where_others_compute() {
    let two: CoreSet = CoreSet::allowed().unwrap().iter().take(2).collect();
    if two.count() < 2 || pocket_llm::device::quota().is_some() {
        eprintln!("skipped: there are no two cores here that nobody takes by the clock");
        return;
    }
    let server = Server::start(&["--threads", "2"]).await;
    let worker = server.worker().await;
    confine(worker, &two);
    // What an answer takes without others is known first.
    server.answer(greedy("Hello", 100)).await;
    let hogs = Hogs::on(&two);
    let mut prompt = greedy("Tell me a story.", 1000);
    prompt["ignoreEos"] = true.into();
    let mut stream = server.stream(NDJSON, &prompt).await;
    stream.speaks().await;
    server
        .metric_becomes("pocket_llm_threads_left_out", 1)
        .await;
    drop(hogs);
    let warned = |line: &str| line.contains("WARN") && line.contains("some are left out");
    assert!(server.program.errors().lines().any(warned));
    // The same worker goes on where it was.
    stream.speaks().await;
    assert_eq!(server.worker().await, worker);
}

#[tokio::test]
async fn cores_that_can_not_be_used_are_refused() {
    let model = test_model("gemma3-tiny.gguf");
    let allowed = CoreSet::allowed().unwrap();
    let beyond = (allowed.iter().max().unwrap() + 1).to_string();
    for (flags, expected) in [
        (["--cores", &beyond], "can't be used: this program may use"),
        (["--cores", ""], "can't be used: this program may use"),
        (["--cores", "x"], "is no list of cores: write it like 4-7"),
        (["--cache-type", "q3"], "possible values: f16, q8_0"),
    ] {
        let program = Program::start(&["serve", model.to_str().unwrap()], |command| {
            command.args(flags);
        });
        let finished = program.finished().await;
        assert!(
            finished.stderr.contains(expected),
            "{expected}: {}",
            finished.stderr
        );
        assert_ne!(finished.status.code(), Some(0));
    }
}

#[tokio::test]
async fn a_cache_of_eight_bits_answers_and_takes_less() {
    let full = Server::start(&[]).await;
    let small = Server::start(&["--cache-type", "q8_0"]).await;
    let cells = async |server: &Server| {
        let status = server.status().await;
        let buffers = status["ai"]["currentModelDetails"]["buffers"]
            .as_array()
            .unwrap()
            .clone();
        let kv = buffers
            .iter()
            .find(|buffer| buffer["name"].as_str().unwrap().contains("KV"))
            .unwrap();
        assert!(
            !server
                .program
                .errors()
                .contains("the memory plan was wrong")
        );
        (
            kv["bytes"].as_u64().unwrap(),
            status["models"][0]["speed"]["cacheType"].clone(),
        )
    };
    let ((one, f16), (other, q8)) = (cells(&full).await, cells(&small).await);
    assert_eq!((f16, q8), ("f16".into(), "q8_0".into()));
    // 34 bytes for 32 numbers instead of 64; the log rounds to hundredths of a MiB.
    assert!(
        (other * 32).abs_diff(one * 17) < 1 << 20,
        "{one} became {other}"
    );
    let answer = small
        .answer(greedy("What is the capital of Japan?", 16))
        .await;
    assert!(
        answer["response"].as_str().unwrap().contains("Tokyo"),
        "{answer}"
    );
}

/// Runs a command on the tiny model to its end, with a folder of models of its own.
async fn run(arguments: &[&str], models: &Path) -> Finished {
    let model = test_model("gemma3-tiny.gguf");
    let program = Program::start(arguments, |command| {
        command.arg(&model).env("POCKET_LLM_MODELS", models);
    });
    let finished = program.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    finished
}

/// Serves the tiny model with this folder, and tells what `/status` says of its speed.
async fn served(models: &Path, flags: &[&str]) -> (Value, String) {
    let program = Program::start(&["serve", "--port", "0"], |command| {
        command
            .arg(test_model("gemma3-tiny.gguf"))
            .args(flags)
            .env("POCKET_LLM_MODELS", models);
    });
    let server = Server::of(program, 1).await;
    server.becomes_ready().await;
    let speed = server.status().await["models"][0]["speed"].clone();
    (speed, server.program.errors())
}

#[tokio::test]
async fn what_tune_finds_is_used_until_somebody_says_otherwise() {
    let models = tempfile::tempdir().unwrap();
    let (before, _) = served(models.path(), &[]).await;
    assert_eq!(before["tuned"], Value::Null);
    let tuned = run(&["tune", "--minutes", "0.5", "--json"], models.path()).await;
    let tuned: Value = serde_json::from_str(&tuned.stdout).unwrap();
    assert!(
        tuned["trials"][0]["decode"].as_f64().unwrap() > 0.0,
        "{tuned:#}"
    );
    assert!(Path::new(tuned["file"].as_str().unwrap()).starts_with(models.path()));

    let (speed, log) = served(models.path(), &[]).await;
    let wanted = &tuned["tuned"]["placement"]["one"]["threads"];
    assert_eq!(speed["oneAnswer"]["threads"], *wanted);
    assert_eq!(speed["reason"], "measured by `pocket-llm tune`");
    assert!(
        speed["tokensPerSecondAtMost"].as_f64().unwrap() > 0.0,
        "{speed}"
    );
    assert!(log.contains("measured by `pocket-llm tune`"), "{log}");
    let (speed, _) = served(models.path(), &["--threads", "1"]).await;
    assert_eq!(speed["reason"], "somebody said so");

    // A damaged result costs nothing but itself.
    fs::write(tuned["file"].as_str().unwrap(), "{").unwrap();
    let (speed, log) = served(models.path(), &[]).await;
    assert_eq!(speed["tuned"], Value::Null);
    assert!(log.contains("can't be read"), "{log}");
}

#[tokio::test]
async fn bench_measures_rows_and_prints_what_it_was_asked_for() {
    let models = tempfile::tempdir().unwrap();
    let small = [
        "bench",
        "--threads",
        "1",
        "--prompt",
        "32",
        "--generate",
        "4",
        "--depth",
        "0,64,100000",
        "--concurrency",
        "1,2",
        "--http",
        "1",
        "-r",
        "1",
    ];
    let run_as = async |output: &str| {
        let mut arguments = small.to_vec();
        arguments.extend(["--output", output]);
        run(&arguments, models.path()).await.stdout
    };
    let report: Value = serde_json::from_str(&run_as("json").await).unwrap();
    let tests = report["tests"].as_array().unwrap();
    let names: Vec<_> = tests
        .iter()
        .map(|test| test["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["pp32", "tg4", "tg4 @ d64"]);
    assert!(
        tests
            .iter()
            .all(|test| test["tokens_per_second"].as_f64().unwrap() > 0.0)
    );
    assert!(
        tests[1]["roofline"]["bytes_per_token"].as_u64()
            < tests[2]["roofline"]["bytes_per_token"].as_u64()
    );
    assert_eq!(report["streams"][1]["answers"], 2);
    let first = &report["first_token"];
    assert!(first["http_ms"].as_f64().unwrap() > 0.0 && first["engine_ms"].as_f64().unwrap() > 0.0);
    let advice = report["advice"].to_string();
    assert!(advice.contains("tg4 @ d100000 was left out"), "{advice}");
    assert!(run_as("csv").await.contains("speed,\"pp32\","));
}

#[tokio::test]
async fn a_long_run_is_recorded_and_drawn() {
    let models = tempfile::tempdir().unwrap();
    let chart = models.path().join("chart.svg");
    let arguments = [
        "bench",
        "--threads",
        "1",
        "--sustained",
        "0.02",
        "-o",
        "json",
        "--svg",
        chart.to_str().unwrap(),
    ];
    let report = run(&arguments, models.path()).await.stdout;
    let report: Value = serde_json::from_str(&report).unwrap();
    let samples = report["sustained"]["samples"].as_array().unwrap();
    assert!(
        !samples.is_empty()
            && samples
                .iter()
                .all(|sample| sample["tokens_per_second"].as_f64().unwrap() > 0.0)
    );
    assert_eq!(
        report["tests"].as_array().unwrap().len(),
        0,
        "heat of other rows would be in it"
    );
    assert!(
        fs::read_to_string(&chart)
            .unwrap()
            .contains("tokens/s (left)")
    );
}
