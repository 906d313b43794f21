//! Answers in a form, through the whole worker: whatever the model's logits are, an answer that ends by itself parses and validates.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[cfg(feature = "llama")]
#[path = "support/models.rs"]
mod models;
#[path = "support/schemas.rs"]
mod schemas;
#[path = "support/scripted.rs"]
mod scripted;

use pocket_llm::engine::{
    EngineError, EngineHandle, Event, FinishReason, Format, Message, Prompt, Request, Role,
    Sampling, Token,
};
use schemas::{Random, schema};
use scripted::{END, Script, Told, engine, options, read, request};
use serde_json::{Value, json};
use std::sync::Arc;

/// A request whose logits are noise.
fn noise(format: Format, seed: u64) -> Request {
    Request {
        sampling: Sampling {
            temperature: 2.0,
            seed,
            ..Sampling::GREEDY
        },
        format: Some(format),
        ..request(&format!("{seed} noise|"))
    }
}

async fn ask(engine: &EngineHandle, request: Request) -> Told {
    read(engine.submit(request).unwrap()).await
}

/// The error of a request that fails, and nothing else.
async fn refusal(engine: &EngineHandle, request: Request) -> String {
    let told = ask(engine, request).await;
    assert_eq!(told.events.len(), 1, "{told:?}");
    match told.events.into_iter().next() {
        Some(Event::Failed(EngineError::BadRequest(why))) => why,
        other => panic!("{other:?}"),
    }
}

fn validator(schema: &Value) -> jsonschema::Validator {
    jsonschema::options()
        .should_validate_formats(true)
        .build(schema)
        .unwrap()
}

/// The answer as JSON, if it is complete.
fn complete(told: &Told) -> Option<Value> {
    match told.outcome().reason {
        FinishReason::Stop => Some(serde_json::from_str(&told.text).unwrap_or_else(|error| {
            panic!("{error}: {}", told.text);
        })),
        FinishReason::Length => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_gives_valid_answers_to_two_hundred_schemas() {
    let script = Arc::new(Script::silent());
    let engine = engine(&script, 4, 60).await;
    let mut finished = 0;
    for seed in 0..200 {
        let schema = schema(&mut Random::new(seed));
        let told = ask(&engine, noise(Format::JsonSchema(schema.clone()), seed)).await;
        if let Some(answer) = complete(&told) {
            finished += 1;
            let validator = validator(&schema);
            if let Err(error) = validator.validate(&answer) {
                panic!(
                    "{error}\n{}\ndoes not validate against\n{schema}",
                    told.text
                );
            }
        }
    }
    // Noise goes on and on where it may (objects and strings without bounds), and then ends at the context's end.
    assert!(
        finished >= 120,
        "only {finished} of 200 answers were completed"
    );
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_gives_objects() {
    let script = Arc::new(Script::silent());
    let engine = engine(&script, 2, 8).await;
    let mut finished = 0;
    for seed in 0..40 {
        let mut request = noise(Format::JsonObject, seed);
        // Or hardly any string would ever end.
        request.sampling.logit_bias = vec![(Token(b'"'.into()), 20.0), (Token(b'}'.into()), 20.0)];
        let answer = complete(&ask(&engine, request).await);
        finished += usize::from(answer.is_some_and(|answer| answer.is_object()));
    }
    assert!(finished >= 30, "{finished} objects");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_form_goes_before_what_the_model_wants() {
    let script = Arc::new(Script::default());
    let engine = engine(&script, 2, 8).await;
    let form = |text: &str, format: Format| Request {
        format: Some(format),
        ..request(text)
    };
    let colour = Format::JsonSchema(json!({"enum": ["red", "green"]}));
    let told = ask(&engine, form("say:green it is|", colour.clone())).await;
    assert!(
        ["\"red\"", "\"green\""].contains(&told.text.as_str()),
        "{told:?}"
    );
    assert_eq!(told.outcome().reason, FinishReason::Stop);
    // What fits is left as it is.
    let told = ask(
        &engine,
        form(
            "say:1+(2+3)|",
            Format::Gbnf("root ::= n | n \"+\" root\nn ::= [0-9] | \"(\" root \")\"".into()),
        ),
    )
    .await;
    assert_eq!(told.text, "1+(2+3)");
    let told = ask(
        &engine,
        form(
            "say:ab12|",
            Format::Lark("start: /[a-z]+/ /[0-9]{2}/".into()),
        ),
    )
    .await;
    assert_eq!(told.text, "ab12");
    // The form ends the answer, also where end tokens are passed over.
    let mut endless = form("loop:ab|", Format::Regex("(ab){1,3}".into()));
    endless.ignore_eos = true;
    let told = ask(&engine, endless).await;
    assert_eq!(
        (told.text.as_str(), told.outcome().reason),
        ("ababab", FinishReason::Stop)
    );
    let mut early = form("say:ab|", Format::Regex("(ab)+".into()));
    early.ignore_eos = true;
    let told = ask(&engine, early).await;
    assert_eq!(
        (told.text.as_str(), told.outcome().reason),
        ("ab", FinishReason::Stop)
    );
    // An answer that is cut says so.
    let mut short = form("say:\"green\"|", colour);
    short.max_tokens = Some(3);
    short.logprobs = Some(1);
    let told = ask(&engine, short).await;
    assert_eq!(
        (told.text.as_str(), told.outcome().reason),
        ("\"gr", FinishReason::Length)
    );
    let logprobs = told.events.iter().map(|event| match event {
        Event::Text { logprobs, .. } => logprobs.len(),
        _ => 0,
    });
    assert_eq!(logprobs.sum::<usize>(), 3);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_formats_are_refused_or_cost_what_others_cost() {
    let script = Arc::new(Script::silent());
    let engine = engine(&script, 4, 60).await;
    for format in hostile() {
        let waiting = engine.submit(noise(format.clone(), 1)).unwrap();
        // Who has no format does not wait for it.
        assert_eq!(ask(&engine, request("say:ok|")).await.text, "ok");
        let told = read(waiting).await;
        match told.events.last() {
            Some(Event::Finished(_) | Event::Failed(EngineError::BadRequest(_))) => {}
            other => panic!("{format:?}: {other:?}"),
        }
    }
    assert!(engine.load().restarts == 0);
    engine.shutdown().await;
}

/// The reasoning and the answer of a chat with a model whose template opens the reasoning, or leaves it to the model.
async fn thought(opened: bool, said: &str, format: Format) -> (String, String, Told) {
    let mut options = options(&Arc::new(Script::default()), 1, 4);
    let opened = if opened { "<think>" } else { "" };
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}{# <think></think> #}";
    options.config.chat_template = Some(format!("{template}{opened}"));
    let engine = EngineHandle::start(options).unwrap();
    engine.loaded().await;
    // What the template adds counts as said already.
    let said = format!("say:{}{said}|", ".".repeat(opened.len()));
    let asked = Request {
        prompt: Prompt::Messages(vec![Message::new(Role::User, said)]),
        format: Some(format),
        ..request("")
    };
    let told = ask(&engine, asked).await;
    engine.shutdown().await;
    let of = |wanted: bool| {
        let texts = told.events.iter().filter_map(|event| match event {
            Event::Text { text, thinking, .. } if *thinking == wanted => Some(text.as_str()),
            _ => None,
        });
        texts.collect::<String>()
    };
    (of(true), of(false), told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_begins_behind_the_reasoning() {
    let digits = || Format::Regex("[0-9]*".into());
    let object = || Format::JsonSchema(json!({"const": {"a": 1}}));
    for (opened, said, format, thoughts, answer) in [
        (
            true,
            "I {think}</think>{\"a\":1}",
            object(),
            "I {think}",
            "{\"a\":1}",
        ),
        (
            false,
            "<think>I {think}</think>{\"a\":1}",
            object(),
            "I {think}",
            "{\"a\":1}",
        ),
        // A model that does not think answers at once, and in form.
        (false, "{\"a\":1}", object(), "", "{\"a\":1}"),
        (false, "Well: {\"a\":1}", object(), "", "{\"a\":1}"),
        (false, "12", digits(), "", "12"),
        (false, "", digits(), "", ""),
        // A form may itself begin as the mark does.
        (
            false,
            "<the>",
            Format::Regex("<[a-z]+>".into()),
            "",
            "<the>",
        ),
        (
            false,
            "<think>!</think><b>",
            Format::Regex("<[a-z]+>".into()),
            "!",
            "<b>",
        ),
    ] {
        let told = thought(opened, said, format).await;
        assert_eq!(
            (told.0.as_str(), told.1.as_str()),
            (thoughts, answer),
            "{said}: {:?}",
            told.2
        );
        assert_eq!(told.2.outcome().reason, FinishReason::Stop, "{said}");
    }
}

fn hostile() -> Vec<Format> {
    let list = |count: usize, of: &dyn Fn(usize) -> Value| (0..count).map(of).collect::<Vec<_>>();
    let named = |count: usize, of: &dyn Fn(usize) -> (String, Value)| {
        (0..count).map(of).collect::<serde_json::Map<_, _>>()
    };
    let mut deep = json!({"type": "string"});
    for _ in 0..60 {
        deep = json!({"items": deep});
    }
    let schemas = [
        json!({"enum": list(100_000, &|n| json!(n))}),
        json!({"enum": list(1000, &|n| json!(format!("value {n}")))}),
        deep,
        json!({"pattern": "((a|a)*)*", "type": "string"}),
        json!({"pattern": "^([a-z]{1,1000}){1,1000}$", "type": "string"}),
        json!({"pattern": "a{1000000}", "type": "string"}),
        json!({"pattern": ".*a.{300}", "type": "string"}),
        json!({"pattern": "(".repeat(500), "type": "string"}),
        json!({"type": "string", "allOf": list(30, &|n| json!({"pattern": format!(".*a.{{{n}}}")}))}),
        json!({"minItems": 10_000, "items": {"minItems": 10_000}, "type": "array"}),
        json!({"minItems": 1_000_000_000_u64}),
        json!({"$ref": "#"}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        json!({"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"], "additionalProperties": false}),
        json!({"$ref": "#/$defs/0", "$defs": named(250, &|n| (n.to_string(), json!({"$ref": format!("#/$defs/{}", (n + 1) % 250)})))}),
        json!({"allOf": list(20, &|n| json!({"oneOf": list(12, &|m| json!({"properties": {"k": {"const": m}, format!("{n} {m}"): {}}, "required": ["k"]}))}))}),
        json!({"allOf": list(8, &|n| json!({"anyOf": list(12, &|m| json!({"properties": named(8, &|k| (format!("{n} {m} {k}"), json!({})))}))}))}),
        json!({"oneOf": list(32, &|n| json!({"required": list(100, &|m| json!(format!("{n} {m}")))}))}),
        json!({"patternProperties": named(1000, &|n| (format!("^{n}.*x.{{50}}"), json!({})))}),
        json!({"properties": named(256, &|n| (format!("property {n}"), json!({"minimum": n})))}),
        json!({"type": "integer", "multipleOf": 999_983, "minimum": 1, "maximum": 9_007_199_254_740_991_u64}),
        json!({"multipleOf": 1e-300}),
        json!({"type": ["string", "strnig"]}),
        json!([]),
        json!({"minimum": "é".repeat(200)}),
    ];
    let texts = [
        Format::Regex("((a*)*)*b".into()),
        Format::Regex("(x{1,1000}){1,1000}".into()),
        Format::Regex("(".repeat(60_000)),
        Format::Regex("a\n/ start: \"b\"".into()),
        Format::Lark("(".repeat(60_000)),
        Format::Lark(format!(
            "start: A\nA: {}",
            list(30, &|n| json!(n))
                .iter()
                .map(|n| format!("/.*a.{{{n}}}/"))
                .collect::<Vec<_>>()
                .join(" & ")
        )),
        Format::Lark("start: start start | \"a\"".into()),
        Format::Lark("start: a\na: a".into()),
        Format::Gbnf("(".repeat(60_000)),
        Format::Gbnf("root ::= root root | \"a\" | root".into()),
        Format::Gbnf(
            (0..400).fold("root ::= r0\nr400 ::= \"a\"\n".into(), |all, n| {
                format!("{all}r{n} ::= r{m} r{m}\n", m = n + 1)
            }),
        ),
    ];
    schemas
        .map(Format::JsonSchema)
        .into_iter()
        .chain(texts)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_reach_the_client_and_say_where() {
    let script = Arc::new(Script::default());
    let engine = engine(&script, 1, 8).await;
    let schema =
        json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}});
    let why = refusal(&engine, noise(Format::JsonSchema(schema), 1)).await;
    assert!(why.contains("/properties/a/uniqueItems"), "{why}");
    let why = refusal(&engine, noise(Format::Regex("a(".into()), 1)).await;
    assert!(
        why.contains("regular expression can't be enforced"),
        "{why}"
    );
    let why = refusal(&engine, noise(Format::Regex("a".repeat(100_000)), 1)).await;
    assert!(why.contains("more than 65536 bytes"), "{why}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn biases_move_the_choice() {
    let script = Arc::new(Script::default());
    let engine = engine(&script, 1, 8).await;
    let biased = |text: &str, logit_bias: Vec<(Token, f32)>| {
        let mut request = request(text);
        request.sampling.logit_bias = logit_bias;
        request.max_tokens = Some(3);
        request
    };
    let letter = |letter: u8| Token(letter.into());
    let told = ask(&engine, biased("any|", vec![(letter(b'q'), 1.0)])).await;
    assert_eq!(told.text, "qqq");
    let told = ask(
        &engine,
        biased("loop:a|", vec![(letter(b'a'), -100.0), (letter(b'z'), 0.5)]),
    )
    .await;
    assert_eq!(told.text, "zzz");
    let told = ask(&engine, biased("loop:a|", vec![(END, 100.0)])).await;
    assert_eq!(
        (told.text.as_str(), told.outcome().reason),
        ("", FinishReason::Stop)
    );
    let why = refusal(&engine, biased("any|", vec![(Token(260), 1.0)])).await;
    assert!(why.contains("no token 260"), "{why}");
    let why = refusal(&engine, biased("any|", vec![(letter(b'a'), 1.0); 1025])).await;
    assert!(why.contains("1024"), "{why}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_request_is_not_compiled_for_nobody() {
    let script = Arc::new(Script::default());
    let engine = engine(&script, 1, 8).await;
    for seed in 0..8 {
        drop(engine.submit(noise(Format::JsonObject, seed)).unwrap());
    }
    scripted::until("nothing is left", || engine.in_flight() == 0).await;
    let told = ask(&engine, noise(Format::Regex("[a-c]{3}".into()), 9)).await;
    assert_eq!(told.text.len(), 3);
    engine.shutdown().await;
}

/// The same with a real model and its vocabulary.
#[cfg(feature = "llama")]
mod real {
    use super::*;
    use pocket_llm::engine::{
        EngineOptions, EngineState, Launch, Message, Prompt, Role, WorkerConfig,
    };
    use std::time::Duration;

    async fn start() -> EngineHandle {
        let engine = EngineHandle::start(EngineOptions {
            config: WorkerConfig {
                model: models::test_model("SmolLM2-135M-Instruct.Q4_1.gguf"),
                ctx_size: Some(4 * 512),
                parallel: 4,
                threads: 1,
                threads_batch: 1,
                batch_size: 128,
                step_ms: 300,
                places: 64,
                chat_template: None,
                cache_bytes: None,
                cache_scope: pocket_llm::engine::CacheScope::Server,
                speculate: pocket_llm::engine::Speculate::Off,
                ..WorkerConfig::default()
            },
            launch: Launch::Process(vec![env!("CARGO_BIN_EXE_pocket-llm").into()]),
            stall: Duration::from_mins(2),
            load_stall: Duration::from_mins(2),
            restart_pause: Duration::from_millis(500),
        });
        let engine = engine.unwrap();
        let state = engine.loaded().await;
        assert!(matches!(state, EngineState::Ready(_)), "{state:?}");
        engine
    }

    fn chat(format: Format, temperature: f32, seed: u64) -> Request {
        let words = "Answer in JSON: who are you, and what do you like?";
        Request {
            sampling: Sampling {
                temperature,
                seed,
                ..Sampling::GREEDY
            },
            max_tokens: Some(96),
            format: Some(format),
            ..Request::new(
                "test",
                Prompt::Messages(vec![Message::new(Role::User, words)]),
            )
        }
    }

    async fn told(engine: &EngineHandle, request: Request) -> Told {
        let mut generation = engine.submit(request).unwrap();
        let mut told = Told {
            text: String::new(),
            events: Vec::new(),
        };
        // Its steps are slow where others compute: no time limit but the test runner's.
        while let Some(event) = generation.next().await {
            if let Event::Text { text, .. } = &event {
                told.text.push_str(text);
            }
            told.events.push(event);
        }
        told
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_small_model_answers_forty_schemas_at_any_temperature() {
        let engine = start().await;
        let answers: Vec<_> = (0..40)
            .map(|seed| {
                let engine = engine.clone();
                tokio::spawn(async move {
                    let schema = schema(&mut Random::new(1000 + seed));
                    let temperature = [0.0, 0.7, 2.0, 5.0][usize::try_from(seed).unwrap() % 4];
                    let request = chat(Format::JsonSchema(schema.clone()), temperature, seed);
                    (schema, told(&engine, request).await)
                })
            })
            .collect();
        let mut finished = 0;
        for answer in answers {
            let (schema, told) = answer.await.unwrap();
            if let Some(answer) = complete(&told) {
                finished += 1;
                if let Err(error) = validator(&schema).validate(&answer) {
                    panic!(
                        "{error}\n{}\ndoes not validate against\n{schema}",
                        told.text
                    );
                }
            }
        }
        assert!(
            finished >= 20,
            "only {finished} of 40 answers were completed"
        );
        engine.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_small_model_fills_in_a_form() {
        let engine = start().await;
        let schema = json!({
            "type": "object",
            "properties": {"capital": {"type": "string", "maxLength": 30}, "country": {"const": "France"}},
            "required": ["country", "capital"],
            "additionalProperties": false,
        });
        let mut request = chat(Format::JsonSchema(schema), 0.0, 1);
        request.prompt = Prompt::Messages(vec![Message::new(
            Role::User,
            "What is the capital of France?",
        )]);
        let told = told(&engine, request).await;
        let answer = complete(&told).unwrap();
        assert!(
            answer["capital"].as_str().unwrap().contains("Paris"),
            "{told:?}"
        );
        // As the schema names them.
        assert!(told.text.starts_with("{\"capital\":"), "{told:?}");
        engine.shutdown().await;
    }
}
