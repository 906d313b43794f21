//! Tokens that a smaller model guesses: what is said is the same, in fewer steps of the large one.

use crate::scripted::{Script, Told, read, request};
use crate::{engine_with, rows};
use pocket_llm::engine::{
    CacheScope, EngineHandle, Format, Request, Sampling, Speculate, Token, WorkerConfig,
};
use std::sync::Arc;
use std::time::Duration;

/// A large model and a small one that says the same.
async fn two(
    parallel: u32,
    wanted: impl FnOnce(&mut WorkerConfig),
) -> (Arc<Script>, Arc<Script>, EngineHandle) {
    let script = Arc::new(Script::default());
    let draft = script.add_draft();
    let engine = engine_with(&script, parallel, |config| {
        config.speculate = Speculate::Always;
        wanted(config);
    })
    .await;
    (script, draft, engine)
}

/// Asks for 120 tokens that are in no prompt and hardly come again, so that only the draft model has something to guess.
fn noise(begins: &str) -> Request {
    Request {
        cache_prompt: false,
        max_tokens: Some(120),
        ignore_eos: true,
        sampling: quiet(),
        ..request(&format!("{begins} noise|"))
    }
}

/// Greedy, but never a bar, which would end the noise.
fn quiet() -> Sampling {
    Sampling {
        logit_bias: vec![(Token(b'|'.into()), -100.0)],
        ..Sampling::GREEDY
    }
}

/// What is said without drafts.
async fn plainly(asked: &Request) -> Told {
    let (_, _, engine) = two(1, |config| config.speculate = Speculate::Off).await;
    read(engine.submit(asked.clone()).unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_said_in_few_steps() {
    let (script, draft, engine) = two(1, |_| {}).await;
    let asked = noise("once");
    let told = read(engine.submit(asked.clone()).unwrap()).await;
    assert_eq!(told.text, plainly(&asked).await.text);
    let usage = &told.outcome().usage;
    let steps = script.steps().len();
    assert!(steps < 40, "{steps} steps");
    assert!(usage.draft_tokens_kept > 80, "{usage:?}");
    // The small one has decoded what the large one has, and hardly more.
    let rows = rows(&draft);
    assert!((120..150).contains(&rows), "{rows}");
}

/// It finds out what steps of both take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_asked_only_where_that_pays() {
    let passes = |large: u64, small: u64, contrary: bool| async move {
        let (script, draft, engine) = two(1, |config| config.speculate = Speculate::Auto).await;
        script.take_time(Duration::from_millis(large));
        draft.take_time(Duration::from_millis(small));
        if contrary {
            draft.contradict();
        }
        for begins in ["one", "two", "three"] {
            read(engine.submit(noise(begins)).unwrap()).await;
        }
        (script.steps().len(), draft.steps().len())
    };
    // Wide margins: on a busy machine each sleep takes some milliseconds more.
    let (steps, guesses) = passes(20, 1, false).await;
    assert!(
        steps < 300 && guesses > 60,
        "{steps} steps, {guesses} passes"
    );
    let (steps, guesses) = passes(2, 60, false).await;
    assert!(
        steps > 300 && guesses < 30,
        "slower than the large one: {steps} steps, {guesses} passes"
    );
    let (steps, guesses) = passes(10, 1, true).await;
    assert!(
        steps > 300 && guesses < 60,
        "always wrong: {steps} steps, {guesses} passes"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_are_guessed_for_in_one_pass() {
    let (script, draft, engine) = two(4, |_| {}).await;
    script.hold();
    let asked: Vec<_> = ["a", "b", "c", "d"].map(noise).into();
    let generations: Vec<_> = asked
        .iter()
        .map(|asked| engine.submit(asked.clone()).unwrap())
        .collect();
    script.wait_until_held();
    script.open();
    for (asked, generation) in asked.iter().zip(generations) {
        assert_eq!(read(generation).await.text, plainly(asked).await.text);
    }
    // On a busy machine some come when others are nearly done.
    let widest = draft.widest_step();
    assert!(widest >= 2, "{widest} in one pass");
    let steps = script.steps().len();
    assert!(steps < 80, "{steps} steps for 120 tokens each");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_does_not_depend_on_it() {
    let (_, draft, with) = two(2, |_| {}).await;
    let (_, wrong, contrary) = two(2, |_| {}).await;
    wrong.contradict();
    let mut kept = 0;
    for seed in 0..18 {
        let asked = Request {
            sampling: Sampling {
                temperature: if seed % 3 == 0 { 0.0 } else { 0.03 },
                repeat_penalty: if seed % 4 == 0 { 1.3 } else { 1.0 },
                seed,
                ..quiet()
            },
            logprobs: (seed % 5 == 0).then_some(2),
            format: (seed % 6 == 0).then(|| Format::Regex("([a-c ]{3,9},)*".into())),
            stop: if seed % 7 == 0 {
                vec!["a".into()]
            } else {
                Vec::new()
            },
            ..noise(&format!("{seed}"))
        };
        let plain = plainly(&asked).await;
        for engine in [&with, &contrary] {
            let told = read(engine.submit(asked.clone()).unwrap()).await;
            assert_eq!(told.text, plain.text, "seed {seed}");
            let (usage, plain) = (&told.outcome().usage, &plain.outcome().usage);
            assert_eq!(usage.completion_tokens, plain.completion_tokens);
            kept += usage.draft_tokens_kept;
        }
    }
    assert!(kept > 300, "{kept}: drafts had a part in it");
    assert!(draft.steps().len() > 200 && wrong.steps().len() > 5);
}

/// What a prompt's beginning cost the small model once it need not cost again; but not across clients that are kept apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_continues_what_it_holds_and_keeps_clients_apart() {
    for (scope, again) in [(CacheScope::Server, true), (CacheScope::Client, false)] {
        let (_, draft, engine) = two(1, |config| config.cache_scope = scope).await;
        let mut decoded = Vec::new();
        for client in ["a", "b"] {
            let before = rows(&draft);
            let asked = Request {
                client: client.into(),
                max_tokens: Some(40),
                ..noise(&format!("{}{client}", "the same beginning, ".repeat(4)))
            };
            read(engine.submit(asked).unwrap()).await;
            decoded.push(rows(&draft) - before);
        }
        assert_eq!(
            decoded[1] + 60 < decoded[0],
            again,
            "{scope:?}: {decoded:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_is_not_asked_again_and_costs_no_answer() {
    let (_, draft, engine) = two(1, |_| {}).await;
    draft.fail(3);
    for begins in ["one", "two"] {
        let asked = noise(begins);
        let told = read(engine.submit(asked.clone()).unwrap()).await;
        assert_eq!(told.text, plainly(&asked).await.text);
    }
    assert_eq!(draft.steps().len(), 4);
}

/// A window forgets; where a guess can't be taken back the text is decoded anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_forgets_starts_again() {
    let (_, draft, engine) = two(1, |_| {}).await;
    draft.forget_beyond(2);
    let asked = Request {
        sampling: Sampling {
            temperature: 0.02,
            ..quiet()
        },
        ..noise("once")
    };
    let told = read(engine.submit(asked.clone()).unwrap()).await;
    assert_eq!(told.text, plainly(&asked).await.text);
    let begun_anew = draft
        .steps()
        .iter()
        .filter(|rows| rows[0].position == 0)
        .count();
    assert!(begun_anew > 1, "{begun_anew}");
}
