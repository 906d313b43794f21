//! Tokens that are guessed: what is said is the same with them, in fewer steps.

use crate::scripted::{END, Script, Told, read, request, until};
use crate::{engine_with, rows};
use pocket_llm::engine::{
    CacheScope, EngineHandle, Event, FinishReason, Format, Request, Sampling, Speculate,
    WorkerConfig,
};
use pocket_llm::worker::decoder::Row;
use std::sync::Arc;
use std::time::Duration;

/// A model that takes a millisecond for a step, whatever is in it: each draft that comes true is a gain.
async fn guessing(
    parallel: u32,
    wanted: impl FnOnce(&mut WorkerConfig),
) -> (Arc<Script>, EngineHandle) {
    let script = Arc::new(Script::default());
    script.take_time(Duration::from_millis(1));
    let engine = engine_with(&script, parallel, |config| {
        config.speculate = Speculate::Always;
        wanted(config);
    })
    .await;
    (script, engine)
}

async fn ask(engine: &EngineHandle, request: Request) -> Told {
    read(engine.submit(request).unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_is_said_in_few_steps() {
    // Each step takes as long, so it must find out that drafts pay.
    let (script, engine) = guessing(1, |config| config.speculate = Speculate::Auto).await;
    let told = ask(
        &engine,
        Request {
            max_tokens: Some(300),
            ..request("loop:all work and no play |")
        },
    )
    .await;
    assert_eq!(told.text, "all work and no play ".repeat(15)[..300]);
    let outcome = told.outcome();
    assert_eq!(
        (outcome.reason, outcome.usage.completion_tokens),
        (FinishReason::Length, 300)
    );
    let (drafted, kept) = (
        outcome.usage.drafted_tokens,
        outcome.usage.draft_tokens_kept,
    );
    assert!(kept > 200 && drafted < 2 * kept, "{kept} of {drafted}");
    let steps = script.steps().len();
    assert!(steps < 100, "{steps} steps");
    assert!(rows(&script) < 27 + 300 + 200);
    let worker = engine.load().worker;
    assert_eq!(
        (worker.draft_rows, worker.draft_rows_kept),
        (drafted.into(), kept.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_guessed_where_that_is_off() {
    let (_, engine) = guessing(1, |config| config.speculate = Speculate::Off).await;
    let told = ask(
        &engine,
        Request {
            max_tokens: Some(100),
            ..request("loop:la |")
        },
    )
    .await;
    assert_eq!(told.outcome().usage.drafted_tokens, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_ends_where_it_ends_in_the_middle_of_a_draft_too() {
    let (_, engine) = guessing(1, |_| {}).await;
    // The end token comes where a copy of the prompt would go on.
    let said = "one two three four five six seven eight nine ten ";
    let told = ask(
        &engine,
        request(&format!("{said}{said}say:{said}one two three|")),
    )
    .await;
    assert_eq!(told.text, format!("{said}one two three"));
    assert_eq!(told.outcome().reason, FinishReason::Stop);
    assert!(told.outcome().usage.draft_tokens_kept > 20);
    // So does a stop string, and a limit.
    let stopped = Request {
        stop: vec!["six se".into()],
        ..request(&format!("{said}loop:{said}|"))
    };
    let told = ask(&engine, stopped).await;
    assert_eq!(told.text, "one two three four five ");
    for limit in [1, 2, 30, 31, 32, 33] {
        let limited = Request {
            max_tokens: Some(limit),
            ..request(&format!("{said}loop:{said}|"))
        };
        let usage = ask(&engine, limited).await.outcome().usage.clone();
        assert_eq!(usage.completion_tokens, limit);
    }
    // And the end of the context.
    let told = ask(&engine, request("loop:la |")).await;
    assert_eq!(told.outcome().usage.completion_tokens, 1024 - 9);
    assert_eq!(told.outcome().reason, FinishReason::Length);
}

/// How prompts and answers share the time rests on what a plain step of answers takes: an engine that guesses from its first answer on must
/// find that out all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_answer_that_is_guessed_holds_up_no_prompt() {
    let (script, engine) = guessing(2, |_| {}).await;
    script.hold();
    // Its first token ends a run that was there before, and all that follows is there too.
    let said = "one two three four five six seven eight nine ten e";
    let before = said.repeat(6);
    let copying = engine.submit(request(&format!("e|{before}loop:{said}|")));
    script.wait_until_held();
    let long = engine.submit(request(&format!("{}say:done|", "x".repeat(300))));
    until("both run", || {
        script.allow(1);
        engine.load().worker.running == 2
    })
    .await;
    script.open();
    assert_eq!(read(long.unwrap()).await.text, "done");
    let usage = read(copying.unwrap()).await.outcome().usage.clone();
    assert!(usage.draft_tokens_kept > 300, "{usage:?}");
    let steps = script.steps();
    let has_prompt = |rows: &Vec<Row>| rows.iter().any(|row| !row.logits);
    let served: Vec<usize> = (0..steps.len())
        .filter(|step| has_prompt(&steps[*step]))
        .collect();
    assert!(
        served.windows(2).all(|two| two[1] - two[0] <= 3),
        "steps with prompts: {served:?}"
    );
}

/// Logits are the same for every batch shape here, so answers must be too: sampled ones, penalised ones, in a form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_does_not_depend_on_drafts() {
    let (_, with) = guessing(1, |_| {}).await;
    let (_, without) = guessing(1, |config| config.speculate = Speculate::Off).await;
    let mut kept = 0;
    for (index, seed) in (0..24).enumerate() {
        let narrow = Sampling {
            temperature: 1.0,
            seed,
            ..Sampling::GREEDY
        };
        let prompts = [
            "any|",
            "noise|",
            "loop:abcabd|",
            "abc abc abc say:abc abc abc abd|",
        ];
        let asked = Request {
            sampling: Sampling {
                // Few letters, so that runs of three come again.
                logit_bias: if seed % 2 == 0 {
                    (b'd'..=b'z')
                        .map(|letter| (pocket_llm::engine::Token(letter.into()), -100.0))
                        .collect()
                } else {
                    Vec::new()
                },
                repeat_penalty: if seed % 3 == 0 { 1.3 } else { 1.0 },
                ..narrow
            },
            max_tokens: Some(150),
            ignore_eos: true,
            logprobs: (seed % 4 == 0).then_some(2),
            format: (seed % 5 == 0).then(|| Format::Regex("([a-c ]{3,9},)*".into())),
            ..request(prompts[index % prompts.len()])
        };
        let (told, plain) = (ask(&with, asked.clone()).await, ask(&without, asked).await);
        assert_eq!(told.text, plain.text, "seed {seed}");
        assert_eq!(logprobs(&told), logprobs(&plain), "seed {seed}");
        assert_eq!(
            told.outcome().usage.completion_tokens,
            plain.outcome().usage.completion_tokens
        );
        kept += told.outcome().usage.draft_tokens_kept;
    }
    assert!(kept > 300, "{kept}: drafts had a part in it");
}

fn logprobs(told: &Told) -> Vec<(u32, f32)> {
    let of = |event: &Event| match event {
        Event::Text { logprobs, .. } => logprobs
            .iter()
            .map(|one| (one.chosen.token.0, one.chosen.logprob))
            .collect(),
        _ => Vec::new(),
    };
    told.events.iter().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_given_before_is_drafted_for_others() {
    // Noise says nothing that was in its prompt.
    let question = |client: &str| Request {
        client: client.into(),
        cache_prompt: false,
        max_tokens: Some(60),
        ignore_eos: true,
        ..request("noise|")
    };
    let (script, engine) = guessing(2, |_| {}).await;
    let first = ask(&engine, question("a")).await;
    let steps = script.steps().len();
    let second = ask(&engine, question("b")).await;
    assert_eq!(first.text, second.text);
    let again = script.steps().len() - steps;
    assert!(again * 3 < steps, "{again} steps after {steps}");
    // Not for strangers, where clients are kept apart.
    let (_, engine) = guessing(2, |config| config.cache_scope = CacheScope::Client).await;
    let mut kept = Vec::new();
    for client in ["a", "b", "a"] {
        let told = ask(&engine, question(client)).await;
        kept.push(told.outcome().usage.draft_tokens_kept);
    }
    assert!(kept[1] <= kept[0], "{kept:?}");
    assert!(kept[2] > 40, "{kept:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_decoded_that_would_follow_an_end() {
    let (script, engine) = guessing(1, |_| {}).await;
    let text = "the old mill stood by the river";
    let asked = |ignore_eos| Request {
        ignore_eos,
        max_tokens: Some(80),
        ..request(&format!("say:{text}|"))
    };
    // Where ends are passed over, they are guessed like other tokens.
    let told = ask(&engine, asked(true)).await;
    let usage = &told.outcome().usage;
    assert!(usage.completion_tokens == 80 && usage.draft_tokens_kept > 40);
    let steps = script.steps().len();
    // The pool has the text now, with ends behind it.
    let told = ask(&engine, asked(false)).await;
    assert_eq!(told.text, text);
    assert!(told.outcome().usage.draft_tokens_kept > 20);
    let rows = script.steps().split_off(steps).concat();
    assert!(rows.iter().all(|row| row.token != END));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_that_never_come_true_are_given_up() {
    let (_, engine) = guessing(1, |_| {}).await;
    let few = Sampling {
        temperature: 1.0,
        seed: 3,
        logit_bias: (b'c'..=b'z')
            .map(|letter| (pocket_llm::engine::Token(letter.into()), -100.0))
            .collect(),
        ..Sampling::GREEDY
    };
    // Two letters at random: runs of three come again all the time, and half of the guesses are wrong.
    let mut drafted = Vec::new();
    for seed in 0..6 {
        let asked = Request {
            sampling: Sampling {
                seed,
                ..few.clone()
            },
            max_tokens: Some(500),
            ..request("any|")
        };
        let usage = ask(&engine, asked).await.outcome().usage.clone();
        drafted.push((usage.drafted_tokens, usage.draft_tokens_kept));
    }
    // Where rows cost nothing, a chance of a half is worth a few rows, never long drafts.
    let (rows, kept) = drafted[5];
    assert!(kept * 5 > rows, "{drafted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_draft_in_one_step() {
    let (script, engine) = guessing(4, |_| {}).await;
    script.hold();
    let generations: Vec<_> = (0..4)
        .map(|n| {
            let asked = Request {
                max_tokens: Some(200),
                ..request(&format!("loop:answer {n} |"))
            };
            engine.submit(asked).unwrap()
        })
        .collect();
    script.wait_until_held();
    script.open();
    for (n, generation) in generations.into_iter().enumerate() {
        let told = read(generation).await;
        assert_eq!(told.text, format!("answer {n} ").repeat(23)[..200]);
    }
    let with_logits = |rows: &Vec<Row>| rows.iter().filter(|row| row.logits).count();
    let widest = script.steps().iter().map(with_logits).max().unwrap();
    assert!((9..=32).contains(&widest), "{widest} rows with logits");
    assert!(script.steps().len() < 400);
}
