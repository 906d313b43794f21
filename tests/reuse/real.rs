//! The same with real models, each in a worker process of the real binary.

use crate::models::test_model;
use pocket_llm::engine::{
    CacheScope, EngineHandle, EngineOptions, EngineState, Event, Format, Launch, Logprob, Message,
    Outcome, Prompt, Request, Role, Sampling, Speculate, WorkerConfig,
};
use std::time::Duration;

const SMALL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// The shape, vocabulary and template of Gemma 3, with noise for weights.
const GEMMA: &str = "gemma3-tiny.gguf";

/// What other batch shapes and other orders of cells change in a log-probability of the noisy model; past a forgotten window it is 1.6.
const NOISE: f32 = 0.1;
/// Answers may part where the likeliest token was not likelier than the second by more than this (in logits).
const NEAR_TIE: f32 = 1.0;

async fn start(model: &str, parallel: u32, wanted: impl FnOnce(&mut WorkerConfig)) -> EngineHandle {
    let mut config = WorkerConfig {
        model: test_model(model),
        ctx_size: Some(2048 * parallel),
        parallel,
        threads: 1,
        threads_batch: 1,
        batch_size: 64,
        step_ms: 300,
        places: 64,
        chat_template: None,
        cache_bytes: None,
        cache_scope: CacheScope::Server,
        speculate: Speculate::Off,
        ..WorkerConfig::default()
    };
    wanted(&mut config);
    let engine = EngineHandle::start(EngineOptions {
        config,
        launch: Launch::Process(vec![env!("CARGO_BIN_EXE_pocket-llm").into()]),
        stall: Duration::from_mins(2),
        load_stall: Duration::from_mins(2),
        restart_pause: Duration::from_millis(500),
    });
    let engine = engine.unwrap();
    assert!(
        matches!(engine.loaded().await, EngineState::Ready(_)),
        "{:?}",
        engine.loaded().await
    );
    engine
}

fn request(prompt: Prompt, max_tokens: u32) -> Request {
    Request {
        sampling: Sampling {
            seed: 1,
            ..Sampling::GREEDY
        },
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        logprobs: Some(2),
        ..Request::new("test", prompt)
    }
}

struct Said {
    text: String,
    logprobs: Vec<Logprob>,
    outcome: Outcome,
}

async fn ask(engine: &EngineHandle, request: Request) -> Said {
    let mut generation = engine.submit(request).unwrap();
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    while let Some(event) = generation.next().await {
        match event {
            Event::Text {
                text: piece,
                logprobs: more,
                ..
            } => {
                text.push_str(&piece);
                logprobs.extend(more);
            }
            Event::Finished(outcome) => {
                return Said {
                    text,
                    logprobs,
                    outcome,
                };
            }
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    panic!("no terminal event")
}

fn words(prefix: &str, count: usize) -> String {
    let words: Vec<String> = (0..count).map(|n| format!("{prefix}{n}")).collect();
    words.join(" ") + " "
}

/// The tokens are the same, or part at a near tie, and as likely until then.
fn assert_same(one: &Said, other: &Said, noise: f32) {
    for (at, (one, other)) in one.logprobs.iter().zip(&other.logprobs).enumerate() {
        if one.chosen.token != other.chosen.token {
            let gap = one.top[0].logprob - one.top[1].logprob;
            assert!(gap <= NEAR_TIE, "token {at}: {one:?} and {other:?}");
            return;
        }
        let apart = (one.chosen.logprob - other.chosen.logprob).abs();
        assert!(apart <= noise, "token {at}: {one:?} and {other:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_from_elsewhere_says_the_same_as_one_s_own() {
    for (model, length) in [(SMALL, 300), (GEMMA, 300)] {
        let engine = start(model, 4, |_| {}).await;
        let prefix = words("w", length);
        let asked = |own: &str| request(Prompt::Text(format!("{prefix}{}", words(own, 20))), 8);
        let together: Vec<_> = ["a", "b", "c"]
            .map(|own| {
                let (engine, asked) = (engine.clone(), asked(own));
                tokio::spawn(async move { ask(&engine, asked).await })
            })
            .into();
        let (mut cached, mut decoded) = (0, 0);
        for (own, said) in ["a", "b", "c"].into_iter().zip(together) {
            let said = said.await.unwrap();
            let usage = &said.outcome.usage;
            assert!(usage.prompt_tokens > 900, "{usage:?}");
            cached += u32::from(usage.cached_tokens > 0);
            decoded += usage.prompt_tokens - usage.cached_tokens;
            let alone = Request {
                cache_prompt: false,
                ..asked(own)
            };
            assert_same(
                &ask(&engine, alone).await,
                &said,
                if model == GEMMA { NOISE } else { NEAR_TIE },
            );
        }
        assert_eq!(cached, 2, "{model}: two wait for the third");
        assert!(decoded < 1400, "{model}: {decoded}");
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_window_prompts_continue_where_others_parted() {
    let engine = start(GEMMA, 1, |_| {}).await;
    let prefix = words("w", 300);
    let asked = |own: &str| request(Prompt::Text(format!("{prefix}{}", words(own, 100))), 4);
    for (own, reused) in [("a", false), ("b", false), ("c", true)] {
        let said = ask(&engine, asked(own)).await;
        let usage = &said.outcome.usage;
        assert_eq!(usage.cached_tokens > 900, reused, "{own}: {usage:?}");
        if reused {
            let alone = Request {
                cache_prompt: false,
                ..asked(own)
            };
            assert_same(&ask(&engine, alone).await, &said, NOISE);
        }
    }
    engine.shutdown().await;
}

/// Letters at random are cut into other tokens by the tokeniser than by the model. The next turn decodes itself and the border.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_turn_decodes_itself_however_the_answer_was_cut() {
    for model in [SMALL, GEMMA] {
        let engine = start(model, 1, |_| {}).await;
        let mut turns = vec![Message::new(Role::User, words("w", 300))];
        let mut held = 0;
        for turn in 0..4 {
            let mut asked = request(Prompt::Messages(turns.clone()), 200);
            asked.format = Some(Format::Regex("[a-z]{30,60}".into()));
            asked.sampling.temperature = 2.0;
            asked.sampling.seed = turn;
            let said = ask(&engine, asked).await;
            let usage = &said.outcome.usage;
            if turn > 0 {
                let again = usage.prompt_tokens - usage.cached_tokens;
                assert!(
                    usage.cached_tokens + 4 >= held && again < 40,
                    "{model}, turn {turn}: {usage:?} after {held}"
                );
            }
            // The token that ended the answer was not decoded, and the tokeniser may join the last ones.
            held = usage.prompt_tokens + usage.completion_tokens - 1;
            turns.push(Message::new(Role::Assistant, said.text));
            turns.push(Message::new(Role::User, "And then?"));
        }
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drafts_say_what_would_have_been_said() {
    let plain = start(SMALL, 2, |_| {}).await;
    let drafting = start(SMALL, 2, |config| config.speculate = Speculate::Always).await;
    let text = "The keeper climbed the stairs every evening at seven. He carried a lamp, a flask of tea and a notebook.";
    let prompts = [
        format!("Repeat this text word for word: {text}"),
        "Count from 1 to 40.".to_owned(),
        "Write a story about a cat.".to_owned(),
    ];
    let mut kept = 0;
    for prompt in prompts {
        let asked = request(
            Prompt::Messages(vec![Message::new(Role::User, prompt)]),
            120,
        );
        let (one, other) = (
            ask(&plain, asked.clone()).await,
            ask(&drafting, asked).await,
        );
        assert_same(&one, &other, NEAR_TIE);
        assert_eq!(one.outcome.usage.drafted_tokens, 0);
        kept += other.outcome.usage.draft_tokens_kept;
    }
    assert!(kept > 20, "{kept}");
    plain.shutdown().await;
    drafting.shutdown().await;
}

/// A model that drafts for itself is nearly always right; one with other words is left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_model_drafts_what_would_have_been_said() {
    let plain = start(SMALL, 2, |_| {}).await;
    let with = |draft: &'static str| {
        start(SMALL, 2, move |config| {
            config.speculate = Speculate::Always;
            config.draft_model = Some(test_model(draft));
        })
    };
    let (drafting, alone) = (with(SMALL).await, with(GEMMA).await);
    let draft_of = |engine: &EngineHandle| match engine.state() {
        EngineState::Ready(info) => info.draft_model.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(draft_of(&drafting), Some(SMALL.replace(".gguf", "")));
    assert_eq!(draft_of(&alone), None);
    let mut usages = [0; 2];
    for prompt in ["Write a story about a cat.", "Why is the sky blue?"] {
        let asked = request(Prompt::Messages(vec![Message::new(Role::User, prompt)]), 80);
        let one = ask(&plain, asked.clone()).await;
        for (engine, kept) in [&drafting, &alone].into_iter().zip(&mut usages) {
            let other = ask(engine, asked.clone()).await;
            assert_same(&one, &other, NEAR_TIE);
            *kept += other.outcome.usage.draft_tokens_kept;
        }
    }
    assert!(usages[0] > 100, "{usages:?}: most of 160");
    for engine in [plain, drafting, alone] {
        engine.shutdown().await;
    }
}
