//! What only real models can show, each in a worker process of the real binary: the small chat model answers, and the shapes of
//! Gemma 3 and Qwen 2.5 load with their own vocabularies and templates.

#![cfg(feature = "llama")]
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/models.rs"]
mod models;

use models::test_model;
use pocket_llm::device::memory::{Free, anonymous_bytes};
use pocket_llm::engine::{
    CacheScope, EngineError, EngineHandle, EngineOptions, EngineState, Event, FinishReason, Launch,
    Message, ModelInfo, Outcome, Prompt, Request, Role, Sampling, Speculate, WorkerConfig,
};
use pocket_llm::models::gguf::Gguf;
use pocket_llm::models::memory::{Asked, Kernels, plan};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const SMALL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// The shapes, vocabularies and templates of larger models, with noise for weights.
const GEMMA: &str = "gemma3-tiny.gguf";
const QWEN: &str = "qwen2.5-tiny.gguf";

/// Rows of a step below 64: across that border attention rounds differently, and greedy text may differ.
const FEW_ROWS: u32 = 48;

fn options(model: PathBuf, parallel: u32, context: u32, rows: u32) -> EngineOptions {
    EngineOptions {
        config: WorkerConfig {
            model,
            ctx_size: Some(context * parallel),
            parallel,
            threads: 1,
            threads_batch: 1,
            batch_size: rows,
            step_ms: 300,
            places: 64,
            chat_template: None,
            cache_bytes: None,
            cache_scope: CacheScope::Server,
            speculate: Speculate::Off,
            ..WorkerConfig::default()
        },
        launch: Launch::Process(vec![env!("CARGO_BIN_EXE_pocket-llm").into()]),
        stall: Duration::from_mins(2),
        load_stall: Duration::from_mins(2),
        restart_pause: Duration::from_millis(500),
    }
}

async fn start(
    model: &str,
    parallel: u32,
    context: u32,
    rows: u32,
) -> (EngineHandle, Arc<ModelInfo>) {
    let engine = EngineHandle::start(options(test_model(model), parallel, context, rows)).unwrap();
    match engine.loaded().await {
        EngineState::Ready(info) => (engine, info),
        other => panic!("{other:?}"),
    }
}

fn greedy(prompt: Prompt, max_tokens: u32) -> Request {
    Request {
        sampling: Sampling {
            seed: 1,
            ..Sampling::GREEDY
        },
        max_tokens: Some(max_tokens),
        ..Request::new("test", prompt)
    }
}

fn chat(content: &str) -> Prompt {
    Prompt::Messages(vec![Message::new(Role::User, content)])
}

async fn ask(engine: &EngineHandle, request: Request) -> Result<(String, Outcome), EngineError> {
    let mut generation = engine.submit(request)?;
    let mut text = String::new();
    while let Some(event) = generation.next().await {
        match event {
            Event::Text { text: piece, .. } => text.push_str(&piece),
            Event::Finished(outcome) => return Ok((text, outcome)),
            Event::Failed(error) => return Err(error),
            _ => {}
        }
    }
    panic!("no terminal event")
}

macro_rules! real {
    ($(#[$about:meta])* async fn $name:ident() $body:block) => {
        $(#[$about])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() $body
    };
}

real! {
async fn the_small_model_knows_capitals() {
    let (engine, info) = start(SMALL, 1, 1024, 128).await;
    assert_eq!(info.template, "model");
    assert_eq!((info.architecture.as_str(), info.vocab_size), ("llama", 49_152));
    assert!(info.buffers.iter().any(|(name, bytes)| name.contains("KV") && *bytes > 0), "{:?}", info.buffers);
    let (text, outcome) = ask(&engine, greedy(Prompt::Text("The capital of France is".into()), 8)).await.unwrap();
    assert!(text.starts_with(" Paris"), "{text}");
    assert_eq!(outcome.reason, FinishReason::Length);
    let (text, outcome) = ask(&engine, greedy(chat("What is the capital of Japan?"), 200)).await.unwrap();
    assert!(text.contains("Tokyo"), "{text}");
    assert_eq!(outcome.reason, FinishReason::Stop);
    assert!(!text.contains("<|"), "no control token leaks: {text}");
    assert!(outcome.usage.ttft_ms > 0.0 && outcome.usage.predicted_ms > 0.0);
    engine.shutdown().await;
}
}

real! {
/// Equal shapes give equal text (and this model's kernels give it for all shapes below 64 rows).
async fn greedy_text_is_the_same_alone_and_in_a_full_batch() {
    let (engine, _) = start(SMALL, 4, 512, FEW_ROWS).await;
    let prompts = ["Write a story about a cat.", "Count to ten.", "Who are you?", "What is water made of?"];
    let mut alone = Vec::new();
    for prompt in prompts {
        let mut request = greedy(chat(prompt), 48);
        request.cache_prompt = false;
        alone.push(ask(&engine, request).await.unwrap().0);
    }
    let together: Vec<_> = prompts
        .map(|prompt| {
            let engine = engine.clone();
            let mut request = greedy(chat(prompt), 48);
            request.cache_prompt = false;
            tokio::spawn(async move { ask(&engine, request).await.unwrap().0 })
        })
        .into();
    for (together, alone) in together.into_iter().zip(&alone) {
        assert_eq!(&together.await.unwrap(), alone);
    }
    engine.shutdown().await;
}
}

real! {
async fn a_long_prompt_gives_the_same_text_in_any_chunks() {
    let story = "The old phone lay on the table and hummed. ".repeat(100);
    let mut texts = Vec::new();
    for rows in [FEW_ROWS, 17] {
        let (engine, _) = start(SMALL, 1, 2048, rows).await;
        let (text, outcome) = ask(&engine, greedy(Prompt::Text(story.clone()), 24)).await.unwrap();
        assert!(outcome.usage.prompt_tokens > 900);
        assert!(engine.load().worker.steps > u64::from(outcome.usage.prompt_tokens / rows), "it came in chunks");
        texts.push(text);
        engine.shutdown().await;
    }
    assert_eq!(texts[0], texts[1]);
}
}

real! {
async fn a_prompt_that_does_not_fit_is_refused_with_the_numbers() {
    let (engine, _) = start(SMALL, 1, 256, 64).await;
    for (prompt, counted) in [("word ".repeat(400), true), ("x".repeat(4 << 20), false)] {
        match ask(&engine, greedy(Prompt::Text(prompt), 8)).await {
            Err(EngineError::PromptTooLong { prompt_tokens, limit: 256 }) => {
                assert!(prompt_tokens > 256 && (!counted || prompt_tokens < 500), "{prompt_tokens}");
            }
            other => panic!("{other:?}"),
        }
    }
    // A long answer ends at the end of the context, and says so.
    let mut long = greedy(Prompt::Text("Once upon a time".into()), 10_000);
    long.ignore_eos = true;
    let (_, outcome) = ask(&engine, long).await.unwrap();
    assert_eq!(outcome.reason, FinishReason::Length);
    assert_eq!(outcome.usage.prompt_tokens + outcome.usage.completion_tokens, 256);
    engine.shutdown().await;
}
}

real! {
async fn the_second_turn_decodes_only_what_is_new() {
    let (engine, _) = start(SMALL, 2, 1024, FEW_ROWS).await;
    let question = Message::new(Role::User, "What is the capital of France?");
    let (answer, first) = ask(&engine, greedy(Prompt::Messages(vec![question.clone()]), 40)).await.unwrap();
    let turns = vec![
        question,
        Message::new(Role::Assistant, answer),
        Message::new(Role::User, "And of Italy?"),
    ];
    let mut request = greedy(Prompt::Messages(turns), 24);
    let (text, second) = ask(&engine, request.clone()).await.unwrap();
    let said = first.usage.prompt_tokens + first.usage.completion_tokens;
    assert!(second.usage.cached_tokens >= said - 2, "{second:?} after {first:?}");
    request.cache_prompt = false;
    let (fresh, uncached) = ask(&engine, request).await.unwrap();
    assert_eq!(uncached.usage.cached_tokens, 0);
    assert_eq!(text, fresh);
    engine.shutdown().await;
}
}

real! {
/// Three streams of four sequences: the fourth one, which holds a conversation, lends a row, if only to find out whether that pays.
async fn a_sequence_that_lends_a_row_keeps_what_it_holds() {
    for model in [SMALL, GEMMA] {
        let (engine, _) = start(model, 4, 1024, FEW_ROWS).await;
        let question = Message::new(Role::User, "What is the capital of France?");
        let (answer, first) = ask(&engine, greedy(Prompt::Messages(vec![question.clone()]), 40)).await.unwrap();
        let topics = ["a boat", "the rain", "an old clock"];
        let story = |topic: &str| {
            let mut request = greedy(chat(&format!("Tell me a story about {topic}.")), 60);
            (request.ignore_eos, request.cache_prompt) = (true, false);
            request
        };
        let [one, two, three] = topics.map(|topic| ask(&engine, story(topic)));
        let told = tokio::try_join!(one, two, three).unwrap();
        let padded = engine.load().worker.padding_rows;
        assert!(padded > 0, "{model}: no step was padded");
        let turns = vec![
            question,
            Message::new(Role::Assistant, answer),
            Message::new(Role::User, "And of Italy?"),
        ];
        let mut request = greedy(Prompt::Messages(turns), 24);
        request.ignore_eos = true;
        let (text, second) = ask(&engine, request.clone()).await.unwrap();
        if model == SMALL {
            // Noise says bytes that are no text, which can't be continued in its own tokens.
            let said = first.usage.prompt_tokens + first.usage.completion_tokens;
            assert!(second.usage.cached_tokens >= said - 2, "{second:?} after {first:?}");
            request.cache_prompt = false;
            assert_eq!(ask(&engine, request).await.unwrap().0, text);
            for (topic, (together, _)) in topics.iter().zip([told.0, told.1, told.2]) {
                assert_eq!(ask(&engine, story(topic)).await.unwrap().0, together, "{topic}");
            }
        } else {
            assert!(second.usage.cached_tokens > 0, "{second:?}");
        }
        engine.shutdown().await;
    }
}
}

real! {
async fn a_clients_control_tokens_are_text() {
    let (engine, _) = start(SMALL, 1, 512, 64).await;
    let tokens = async |content: &str| {
        ask(&engine, greedy(chat(content), 1)).await.unwrap().1.usage.prompt_tokens
    };
    let (plain, control) = (tokens("x").await, tokens("<|im_end|>").await);
    assert!(control >= plain + 3, "one control token would be no longer than a letter: {plain}, {control}");
    engine.shutdown().await;
}
}

real! {
async fn shapes_of_gemma_and_qwen_load_template_and_generate() {
    for (file, architecture, vocabulary) in
        [("gemma3-tiny.gguf", "gemma3", 262_144), ("qwen2.5-tiny.gguf", "qwen2", 151_936)]
    {
        let (engine, info) = start(file, 2, 1024, 64).await;
        assert_eq!((info.template.as_str(), info.architecture.as_str()), ("model", architecture));
        assert!((info.vocab_size..=info.vocab_size + 64).contains(&vocabulary), "{}", info.vocab_size);
        if cfg!(any(target_feature = "avx2", target_feature = "dotprod")) {
            assert!(info.kernels.iter().any(|kernel| kernel.starts_with("q4_0_")), "fast kernels: {:?}", info.kernels);
        }
        let system = Message::new(Role::System, "Be brief.");
        let user = Message::new(Role::User, "Grüß dich, 日本! 👋");
        let mut request = greedy(Prompt::Messages(vec![system, user]), 16);
        request.ignore_eos = true;
        let (_, outcome) = ask(&engine, request).await.unwrap();
        assert_eq!((outcome.reason, outcome.usage.completion_tokens), (FinishReason::Length, 16));
        engine.shutdown().await;
    }
}
}

real! {
/// Gemma 3's layers see 512 tokens back. Beyond that a sequence can go on, but not go back.
async fn a_sliding_window_is_respected() {
    let (engine, info) = start("gemma3-tiny.gguf", 1, 2048, 64).await;
    assert_eq!(info.context_per_sequence, 2048);
    let words: Vec<String> = (0..450).map(|n| format!("w{n}")).collect();
    let mut long = greedy(Prompt::Text(words.join(" ")), 4);
    long.ignore_eos = true;
    let (text, first) = ask(&engine, long.clone()).await.unwrap();
    assert!(first.usage.prompt_tokens > 1400, "{first:?}");
    // All but the last token: within what the window still holds.
    let (again, second) = ask(&engine, long.clone()).await.unwrap();
    assert_eq!((again, second.usage.cached_tokens), (text, first.usage.prompt_tokens - 1));
    let mut back = long.clone();
    back.prompt = Prompt::Text(words[..200].join(" "));
    let (_, third) = ask(&engine, back).await.unwrap();
    assert_eq!(third.usage.cached_tokens, 0, "its window has forgotten that far back");
    engine.shutdown().await;
}
}

real! {
async fn a_file_that_is_no_model_is_named_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(test_model("gemma3-tiny.gguf")).unwrap();
    let cases: [(&str, &[u8], &str); 3] = [
        ("text.gguf", b"this is no model", "is not a GGUF file"),
        ("empty.gguf", b"", "too short"),
        ("cut.gguf", &whole[..whole.len() / 2], "can't be loaded"),
    ];
    for (name, bytes, expected) in cases {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let engine = EngineHandle::start(options(file, 1, 256, 64)).unwrap();
        match engine.loaded().await {
            EngineState::Failed { reason } => {
                assert!(reason.contains(expected) && reason.contains(name) && !reason.contains('\n'), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        engine.shutdown().await;
    }
}
}

real! {
async fn sizes_that_can_not_work_are_refused_with_one_that_would() {
    let cases = [
        (options(test_model(SMALL), 1, 100_000, 64), "--ctx-size 8192 or less"),
        (options(test_model(SMALL), 300, 64, 512), "1 to 256"),
        (options(test_model(SMALL), 8, 256, 4), "8 to 8192"),
    ];
    for (options, expected) in cases {
        let engine = EngineHandle::start(options).unwrap();
        match engine.loaded().await {
            EngineState::Failed { reason } => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{other:?}"),
        }
        engine.shutdown().await;
    }
}
}

/// Where further models may lie; those that are not there are left out.
const FURTHER: [&str; 6] = [
    "gemma-3-270m-q4_k_m.gguf",
    "gemma3-1b-Q4_0.gguf",
    "gemma3-1b-Q4_K_M.gguf",
    "gemma3-1b-Q8_0.gguf",
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "qwen2.5-1.5b-Q4_K_M.gguf",
];

real! {
/// Every load, with whatever settings: the buffers that llama.cpp reports, against those planned from the header.
async fn the_memory_plan_is_right_within_5_percent() {
    let tested = [SMALL, GEMMA, QWEN];
    let mut models = tested.map(test_model).to_vec();
    let folder = models[0].parent().unwrap().to_owned();
    models.extend(FURTHER.map(|name| folder.join(name)).into_iter().filter(|path| path.is_file()));
    for model in models {
        let header = Gguf::read(&model).unwrap();
        for (parallel, context, rows) in [(1, 256, 8), (4, 2048, 128), (2, 1024, 512), (8, 512, 32)] {
            let asked = Asked {
                ctx_size: Some(context * parallel),
                parallel: Some(parallel),
                batch_size: Some(rows),
                ..Asked::default()
            };
            let planned = plan(&header, &asked, Kernels::here(), None).unwrap().needs;
            let engine = EngineHandle::start(options(model.clone(), parallel, context, rows)).unwrap();
            let EngineState::Ready(info) = engine.loaded().await else {
                panic!("{:?}", engine.loaded().await)
            };
            let reported: u64 = info.buffers.iter().map(|(_, bytes)| bytes).sum();
            let apart = planned.buffers().abs_diff(reported);
            let about = format!("{} {parallel} {context} {rows}: {planned:?}, {:?}", model.display(), info.buffers);
            assert!(apart * 20 <= reported, "{about}");
            engine.shutdown().await;
        }
    }
}
}

real! {
/// What the worker holds beside the mapped file, against the plan: never more, and not much less. Also with large steps, for which
/// llama.cpp reserves hundreds of megabytes that nothing is written to.
async fn the_worker_itself_is_planned_too() {
    for (name, rows) in [SMALL, GEMMA, QWEN].into_iter().flat_map(|name| [(name, 32), (name, 512)]) {
        let model = test_model(name);
        let asked = Asked {
            ctx_size: Some(2048),
            parallel: Some(2),
            batch_size: Some(rows),
            ..Asked::default()
        };
        let needs = plan(&Gguf::read(&model).unwrap(), &asked, Kernels::here(), None).unwrap().needs;
        let mut options = options(model, 2, 1024, rows);
        // Steps as long as there are rows for them.
        options.config.step_ms = 60_000;
        let engine = EngineHandle::start(options).unwrap();
        assert!(matches!(engine.loaded().await, EngineState::Ready(_)));
        for text in ["Once upon a time ", "A long story of a lighthouse ", "Nobody was there "] {
            let mut request = greedy(Prompt::Text(text.repeat(140)), 8);
            request.ignore_eos = true;
            ask(&engine, request).await.unwrap();
        }
        let held = anonymous_bytes(engine.load().pid.unwrap()).unwrap();
        let anonymous = needs.repacked + needs.kv + needs.compute + needs.output + needs.process;
        assert!(held <= anonymous && held > anonymous / 3, "{name}, {rows} rows: {held} of {anonymous}: {needs}");
        engine.shutdown().await;
    }
}
}

real! {
async fn a_context_larger_than_memory_is_refused_with_the_sum() {
    let options = options(test_model(SMALL), 256, 8192, 8192);
    let asked = Asked {
        ctx_size: options.config.ctx_size,
        parallel: Some(256),
        batch_size: Some(8192),
        ..Asked::default()
    };
    let header = Gguf::read(&options.config.model).unwrap();
    let needs = plan(&header, &asked, Kernels::here(), None).unwrap().needs;
    if needs.total() <= Free::here().unwrap().bytes {
        return eprintln!("this machine has memory for {needs}");
    }
    let engine = EngineHandle::start(options.clone()).unwrap();
    match engine.loaded().await {
        EngineState::Failed { reason } => {
            assert!(reason.contains("does not fit into memory: weights") && reason.contains("KV cache"), "{reason}");
            assert!(reason.contains("are available: use --ctx-size"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    engine.shutdown().await;
}
}
