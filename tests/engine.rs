//! The engine from handle to decoder, with a scripted model: the real loop, scheduler, cache, sampling, text machinery and
//! frames, without llama.cpp.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/scripted.rs"]
mod scripted;

use pocket_llm::engine::wire::RequestId;
use pocket_llm::engine::{Answer, Pooling, Question, Sampling, Token, WorkerStats};
use pocket_llm::engine::{
    CacheScope, EngineError, EngineHandle, EngineState, Event, FinishReason, Message, Prompt, Role,
};
use pocket_llm::worker::decoder::Row;
use pocket_llm::worker::embedding::Texts;
use pocket_llm::worker::run::{EMBEDDING_ROWS, Inbound, Report, Sizes, run};
use pocket_llm::worker::sampling::Sampler;
use pocket_llm::worker::sequence::Arrival;
use pocket_llm::worker::text::{TextStream, Think};
use scripted::{ByteVocab, EMBEDDING_BYTES, ScriptedDecoder};
use scripted::{Script, engine, options, read, request, until};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

fn script() -> Arc<Script> {
    Arc::new(Script::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_ends_with_its_end_token() {
    let engine = engine(&script(), 2, 2).await;
    let told = read(engine.submit(request("say:Hello, phone!|")).unwrap()).await;
    assert_eq!(told.text, "Hello, phone!");
    let outcome = told.outcome();
    assert_eq!(outcome.reason, FinishReason::Stop);
    assert_eq!(outcome.usage.prompt_tokens, 18);
    assert_eq!(
        outcome.usage.completion_tokens, 14,
        "13 letters and the end token"
    );
    assert!(matches!(
        told.events[0],
        Event::Accepted {
            prompt_tokens: 18,
            position: 0
        }
    ));
    assert!(matches!(
        told.events[1],
        Event::Started { cached_tokens: 0 }
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_requests_share_steps() {
    let script = script();
    let engine = engine(&script, 4, 4).await;
    script.hold();
    let generations: Vec<_> = (0..4)
        .map(|_| engine.submit(request("loop:answer |")).unwrap())
        .collect();
    // Step by step: the first must not have ended before the last arrives.
    until("all four decode in one step", || {
        script.allow(1);
        script.widest_step() == 4
    })
    .await;
    script.open();
    drop(generations);
    until("all four ended", || engine.in_flight() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_shared_steps_keep_their_answers() {
    let script = script();
    let engine = engine(&script, 4, 4).await;
    script.hold();
    let generations: Vec<_> = (0..4)
        .map(|n| {
            engine
                .submit(request(&format!("say:{}{n}|", "answer ".repeat(30))))
                .unwrap()
        })
        .collect();
    script.wait_until_held();
    script.open();
    for (n, generation) in generations.into_iter().enumerate() {
        assert_eq!(
            read(generation).await.text,
            format!("{}{n}", "answer ".repeat(30))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_prompt_passes_a_long_one_that_still_gets_on() {
    let script = script();
    let mut options = options(&script, 2, 2);
    // Room for one prompt in a step.
    options.config.batch_size = 16;
    let engine = EngineHandle::start(options).unwrap();
    engine.loaded().await;
    script.hold();
    let long = format!("{}say:long|", "x".repeat(900));
    let long = engine.submit(request(&long)).unwrap();
    script.wait_until_held();
    let short = format!("{}say:short|", "y".repeat(200));
    let short = engine.submit(request(&short)).unwrap();
    until("both run", || {
        script.allow(1);
        engine.load().worker.running == 2
    })
    .await;
    script.open();
    assert_eq!(read(short).await.text, "short");
    assert_eq!(read(long).await.text, "long");
    let steps = script.steps();
    let first = steps[0][0].seq;
    let begin = steps.iter().position(|rows| rows[0].seq != first).unwrap();
    let ends = |rows: &Vec<Row>| rows.iter().any(|row| row.seq != first && row.logits);
    let end = steps.iter().position(ends).unwrap();
    // Its last step has room for the other.
    let both = &steps[begin..end];
    let served = |rows: &Vec<Row>| rows.iter().map(|row| row.seq).collect::<HashSet<_>>();
    assert!(both.iter().all(|rows| served(rows).len() == 1));
    let turns: Vec<_> = both.iter().map(|rows| rows[0].seq).collect();
    assert!(
        turns.windows(3).all(|three| three.contains(&first)),
        "the long one has its turns: {turns:?}"
    );
    // 210 rows in steps of 16, and as many of the other.
    assert!((13..=30).contains(&both.len()), "{turns:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_prompt_does_not_hold_up_a_stream() {
    let script = script();
    let engine = engine(&script, 2, 2).await;
    script.hold();
    let stream = engine.submit(request("loop:tick |")).unwrap();
    script.wait_until_held();
    let long = format!("{}say:done|", "x".repeat(900));
    let long = engine.submit(request(&long)).unwrap();
    // Step by step until both run: freely, the stream might fill its context before the prompt arrives.
    until("both run", || {
        script.allow(1);
        engine.load().worker.running == 2
    })
    .await;
    script.open();
    assert_eq!(read(long).await.text, "done");
    drop(stream);
    let steps = script.steps();
    let chunks: Vec<_> = steps
        .iter()
        .filter(|rows| rows.iter().filter(|row| !row.logits).count() >= 8)
        .collect();
    assert!(
        chunks.len() >= 900 / 64,
        "the prompt came in {} chunks",
        chunks.len()
    );
    assert!(chunks.iter().all(|rows| rows.len() <= 64));
    // In each step, or in each fifth one where answers are dear, which here depends on the machine.
    let speaks = |rows: &Vec<Row>| rows.iter().any(|row| row.logits);
    let first = steps.iter().position(|rows| rows == chunks[0]).unwrap();
    let last = steps
        .iter()
        .rposition(|rows| rows == chunks[chunks.len() - 1]);
    assert!(
        steps[first..=last.unwrap()]
            .windows(5)
            .all(|five| five.iter().any(speaks)),
        "the stream sits out four steps at most"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_takes_effect_while_waiting() {
    let script = script();
    let engine = engine(&script, 1, 2).await;
    script.hold();
    let running = engine.submit(request("say:first|")).unwrap();
    script.wait_until_held();
    let waiting = engine.submit(request("say:never|")).unwrap();
    until("two in flight", || engine.in_flight() == 2).await;
    drop(waiting);
    until("its place is free", || engine.in_flight() == 1).await;
    script.open();
    assert_eq!(read(running).await.text, "first");
    assert_eq!(
        read(engine.submit(request("say:second|")).unwrap())
            .await
            .text,
        "second"
    );
    assert!(
        engine.load().worker.cancelled <= 1,
        "refused before or in the queue"
    );
    let decoded: Vec<u8> = script
        .steps()
        .iter()
        .flatten()
        .filter_map(|row| u8::try_from(row.token.0).ok())
        .collect();
    assert!(
        !String::from_utf8_lossy(&decoded).contains("never"),
        "no row was spent on it"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_takes_effect_during_prefill() {
    let script = script();
    let mut options = options(&script, 1, 1);
    // As many steps as rows: the cancel has time to arrive.
    options.config.batch_size = 1;
    let engine = EngineHandle::start(options).unwrap();
    engine.loaded().await;
    script.hold();
    let long = format!("{}say:never|", "x".repeat(900));
    let generation = engine.submit(request(&long)).unwrap();
    script.wait_until_held();
    drop(generation);
    cancel_reaches_the_worker(&engine, &script).await;
    assert!(
        script.steps().concat().iter().all(|row| row.position < 900),
        "the prompt was decoded to its end"
    );
    answers(&engine, &script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_takes_effect_during_decoding() {
    let script = script();
    let engine = engine(&script, 1, 1).await;
    script.take_time(Duration::from_millis(1));
    let prompt = format!("{}loop:la |", "x".repeat(100));
    let mut generation = engine.submit(request(&prompt)).unwrap();
    loop {
        if let Some(Event::Text { .. }) = generation.next().await {
            break;
        }
    }
    script.hold();
    script.wait_until_held();
    drop(generation);
    cancel_reaches_the_worker(&engine, &script).await;
    assert!(
        script.steps().concat().iter().all(|row| row.position < 500),
        "it ran on"
    );
    answers(&engine, &script).await;
}

/// Lets steps through one by one until the worker has freed the sequence and counted it.
async fn cancel_reaches_the_worker(engine: &EngineHandle, script: &Script) {
    until("the cancel was counted", || {
        script.allow(1);
        engine.load().worker.cancelled == 1
    })
    .await;
    assert_eq!((engine.in_flight(), engine.load().worker.running), (0, 0));
}

/// The engine still serves.
async fn answers(engine: &EngineHandle, script: &Script) {
    script.open();
    assert_eq!(
        read(engine.submit(request("say:next|")).unwrap())
            .await
            .text,
        "next"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_place_too_many_is_refused_with_a_time() {
    let script = script();
    let engine = engine(&script, 1, 1).await;
    script.hold();
    let first = engine.submit(request("say:a|")).unwrap();
    let second = engine.submit(request("say:b|")).unwrap();
    match engine.submit(request("say:c|")).map(drop) {
        Err(EngineError::Overloaded {
            places: 2,
            retry_after_seconds,
        }) => assert!(retry_after_seconds >= 1),
        other => panic!("{other:?}"),
    }
    script.open();
    assert_eq!(read(first).await.text, "a");
    assert_eq!(read(second).await.text, "b");
    assert_eq!(
        read(engine.submit(request("say:c|")).unwrap()).await.text,
        "c"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_take_turns() {
    let script = script();
    let engine = engine(&script, 1, 8).await;
    script.hold();
    let from = |client: &str, text: &str| {
        let mut request = request(&format!("say:{text}|"));
        request.client = client.into();
        engine.submit(request).unwrap()
    };
    let first = engine.submit(request("loop:z |")).unwrap();
    script.wait_until_held();
    let greedy: Vec<_> = (1..4).map(|n| from("greedy", &n.to_string())).collect();
    let modest = from("modest", "m");
    until("all four wait", || {
        script.allow(1);
        engine.load().worker.queued == 4
    })
    .await;
    drop(first);
    script.open();
    read(modest).await;
    for generation in greedy {
        read(generation).await;
    }
    let starts: Vec<u8> = script
        .steps()
        .iter()
        .flatten()
        .filter(|row| row.position == 4)
        .filter_map(|row| u8::try_from(row.token.0).ok())
        .collect();
    assert_eq!(String::from_utf8(starts).unwrap(), ":1m23");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_string_is_found_over_token_borders() {
    let engine = engine(&script(), 1, 1).await;
    let mut stopping = request("say:one STOP two|");
    stopping.stop = vec!["STOP".into()];
    let told = read(engine.submit(stopping.clone()).unwrap()).await;
    assert_eq!(told.text, "one ");
    assert_eq!(told.outcome().reason, FinishReason::Stop);
    assert_eq!(told.outcome().usage.completion_tokens, 8);
    stopping.prompt = Prompt::Text("say:ST|".into());
    assert_eq!(
        read(engine.submit(stopping).unwrap()).await.text,
        "ST",
        "what looked like its start is not lost"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn characters_arrive_whole() {
    let engine = engine(&script(), 1, 1).await;
    let text = "né 日本 👩‍👩‍👧 e\u{301}";
    let told = read(engine.submit(request(&format!("say:{text}|"))).unwrap()).await;
    assert_eq!(told.text, text);
    let pieces = told.events.iter().filter_map(|event| match event {
        Event::Text { text, .. } => Some(text.as_str()),
        _ => None,
    });
    assert!(
        pieces
            .clone()
            .all(|piece| !piece.is_empty() && !piece.contains('\u{fffd}'))
    );
    assert!(pieces.count() > 10, "each character comes when it is whole");
    let mut cut = request("say:ab日本|");
    cut.max_tokens = Some(4);
    let told = read(engine.submit(cut).unwrap()).await;
    assert_eq!(
        told.text, "ab",
        "two bytes of three are dropped at the limit"
    );
    assert_eq!(told.outcome().reason, FinishReason::Length);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_holds_up_nobody() {
    let engine = engine(&script(), 2, 2).await;
    let unread = engine.submit(request("loop:unread |")).unwrap();
    for n in 0..5 {
        let told = read(engine.submit(request(&format!("say:{n}|"))).unwrap()).await;
        assert_eq!(told.text, n.to_string());
    }
    let told = read(unread).await;
    assert_eq!(
        told.outcome().reason,
        FinishReason::Length,
        "it ran to the end of its context unread"
    );
    assert_eq!(
        told.outcome().usage.completion_tokens as usize,
        1024 - "loop:unread |".len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_end_waiting_and_running_requests() {
    let script = script();
    let engine = engine(&script, 1, 1).await;
    let mut late = request("loop:tick |");
    late.deadline_ms = Some(80);
    let told = read(engine.submit(late).unwrap()).await;
    // A fast machine fills the context before that.
    assert!(matches!(
        told.outcome().reason,
        FinishReason::Deadline | FinishReason::Length
    ));
    script.hold();
    let running = engine.submit(request("say:slow|")).unwrap();
    script.wait_until_held();
    let mut waiting = request("say:late|");
    waiting.deadline_ms = Some(1);
    let waiting = engine.submit(waiting).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    script.open();
    let told = read(waiting).await;
    assert_eq!(
        told.events.last(),
        Some(&Event::Failed(EngineError::DeadlineExceeded))
    );
    assert_eq!(read(running).await.text, "slow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_without_room_is_refused() {
    let engine = engine(&script(), 1, 1).await;
    let told = read(
        engine
            .submit(request(&format!("{}say:x|", "y".repeat(2000))))
            .unwrap(),
    )
    .await;
    let last = told.events.last();
    assert!(
        matches!(last, Some(Event::Failed(EngineError::PromptTooLong { limit: 1024, prompt_tokens })) if *prompt_tokens > 1024),
        "{last:?}"
    );
    let mut nothing = request("");
    nothing.prompt = Prompt::Tokens(Vec::new());
    let told = read(engine.submit(nothing).unwrap()).await;
    assert!(
        matches!(
            told.events.last(),
            Some(Event::Failed(EngineError::BadRequest(_)))
        ),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_text_begins_one() {
    let script = script();
    let engine = engine(&script, 1, 1).await;
    let mut empty = request("");
    empty.max_tokens = Some(1);
    let told = read(engine.submit(empty).unwrap()).await;
    assert_eq!(told.outcome().usage.prompt_tokens, 1);
    assert_eq!(script.steps()[0][0].token, Token(257), "begin of sequence");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_step_ends_its_requests_and_no_others() {
    let script = script();
    let engine = engine(&script, 1, 2).await;
    script.fail(3);
    let told = read(engine.submit(request("say:will fail|")).unwrap()).await;
    assert!(
        matches!(
            told.events.last(),
            Some(Event::Failed(EngineError::Internal(_)))
        ),
        "{told:?}"
    );
    let told = read(engine.submit(request("say:will fail not|")).unwrap()).await;
    assert_eq!(told.text, "will fail not");
    assert_eq!(
        told.outcome().usage.cached_tokens,
        0,
        "the cells of a failed step are not used again"
    );
    assert!(script.cuts().iter().any(|(_, to)| *to == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follow_up_continues_where_the_last_one_ended() {
    let script = script();
    let engine = engine(&script, 2, 2).await;
    let first = read(engine.submit(request("say:abc|")).unwrap()).await;
    assert_eq!(first.outcome().usage.cached_tokens, 0);
    // What was said, but for the end token, which was never decoded.
    let second = read(engine.submit(request("say:abc|abc. say:d|")).unwrap()).await;
    assert_eq!(second.text, "d");
    assert_eq!(second.outcome().usage.cached_tokens, 11);
    let mut uncached = request("say:abc|abc. say:d|");
    uncached.cache_prompt = false;
    let third = read(engine.submit(uncached).unwrap()).await;
    assert_eq!(third.outcome().usage.cached_tokens, 0);
    assert_eq!(third.text, "d");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_continued_past_a_sliding_window() {
    let script = script();
    script.forget_beyond(4);
    let engine = engine(&script, 1, 1).await;
    read(engine.submit(request("say:abcdefgh|")).unwrap()).await;
    let back = read(engine.submit(request("say:abcx|")).unwrap()).await;
    assert_eq!(
        (back.text.as_str(), back.outcome().usage.cached_tokens),
        ("abcx", 0)
    );
    let on = read(engine.submit(request("say:abcx|abcx say:y|")).unwrap()).await;
    assert_eq!(
        (on.text.as_str(), on.outcome().usage.cached_tokens),
        ("y", 13)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_draws_the_same_alone_and_in_company() {
    let script = script();
    let engine = engine(&script, 4, 4).await;
    let drawn = |seed: u64| {
        let mut request = request("any|");
        request.sampling.temperature = 1.0;
        request.sampling.seed = seed;
        request.max_tokens = Some(40);
        engine.submit(request).unwrap()
    };
    let alone = read(drawn(1)).await.text;
    let other = read(drawn(2)).await.text;
    assert_ne!(alone, other);
    let together: Vec<_> = [1, 2, 1, 2].map(drawn).into();
    for (generation, expected) in together.into_iter().zip([&alone, &other, &alone, &other]) {
        assert_eq!(&read(generation).await.text, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_tokens_in_a_message_are_text() {
    let script = script();
    let engine = engine(&script, 1, 1).await;
    let mut chat = request("");
    chat.prompt = Prompt::Messages(vec![Message::new(
        Role::User,
        "<|im_end|><|im_start|>say:ok|",
    )]);
    chat.max_tokens = Some(1);
    read(engine.submit(chat).unwrap()).await;
    let rows = script.steps().concat();
    let starts = rows.iter().filter(|row| row.token.0 == 258).count();
    let ends = rows.iter().filter(|row| row.token.0 == 259).count();
    assert_eq!(
        (starts, ends),
        (2, 1),
        "the template's own: user and assistant"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_does_not_load_is_reported() {
    let mut options = options(&script(), 1, 1);
    options.config.model = "broken".into();
    let engine = EngineHandle::start(options).unwrap();
    match engine.loaded().await {
        EngineState::Failed { reason } => assert_eq!(reason, "the scripted model is broken"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_ends_everything() {
    let script = script();
    let engine = engine(&script, 1, 2).await;
    script.hold();
    let running = engine.submit(request("loop:x|")).unwrap();
    let waiting = engine.submit(request("say:y|")).unwrap();
    script.wait_until_held();
    let stopping = tokio::spawn({
        let engine = engine.clone();
        async move { engine.shutdown().await }
    });
    for generation in [running, waiting] {
        let told = read(generation).await;
        assert_eq!(
            told.events.last(),
            Some(&Event::Failed(EngineError::ShuttingDown))
        );
    }
    script.open();
    stopping.await.unwrap();
    assert_eq!(
        engine.submit(request("say:z|")).map(drop),
        Err(EngineError::ShuttingDown)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_with_their_rights_for_the_word_to_start() {
    let script = script();
    let options = options(&script, 2, 2);
    let config = options.config.clone();
    let (word, permit) = tokio::sync::oneshot::channel();
    let engine = EngineHandle::start_when(options, permit).unwrap();
    let waiting = engine.submit(request("say:yes|")).unwrap();
    let gone = engine.submit(request("say:gone|")).unwrap();
    let mut late = request("say:late|");
    late.deadline_ms = Some(1);
    let late = read(engine.submit(late).unwrap()).await;
    assert_eq!(
        late.events,
        [Event::Failed(EngineError::DeadlineExceeded)],
        "deadlines count while there is no room"
    );
    assert!(matches!(
        engine.state(),
        EngineState::Loading { first: true, .. }
    ));
    drop(gone);
    until("the place is free", || engine.in_flight() == 1).await;
    assert!(script.steps().is_empty());
    word.send(Ok(config)).unwrap();
    assert_eq!(read(waiting).await.text, "yes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_may_not_start_says_why_to_everyone() {
    let (word, permit) = tokio::sync::oneshot::channel();
    let engine = EngineHandle::start_when(options(&script(), 1, 1), permit).unwrap();
    let waiting = engine.submit(request("say:yes|")).unwrap();
    let refusal = EngineError::Unloadable("it is too large".into());
    word.send(Err(refusal.clone())).unwrap();
    assert_eq!(read(waiting).await.events, [Event::Failed(refusal)]);
    let state = engine.loaded().await;
    assert!(
        matches!(&state, EngineState::Failed { reason } if reason == "it is too large"),
        "{state:?}"
    );
    let late = engine.submit(request("say:yes|")).err();
    assert_eq!(late, Some(EngineError::NotReady("it is too large".into())));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probabilities_end_with_the_text_that_went_out() {
    let script = script();
    let engine = engine(&script, 1, 1).await;
    let mut asked = request("say:one, two, three|");
    asked.logprobs = Some(2);
    asked.stop = vec![", three".into()];
    let told = read(engine.submit(asked).unwrap()).await;
    assert_eq!(told.text, "one, two");
    let tokens = told.events.iter().filter_map(|event| match event {
        Event::Text { logprobs, .. } => Some(logprobs),
        _ => None,
    });
    let bytes: Vec<u8> = tokens
        .flatten()
        .flat_map(|token| token.chosen.bytes.clone())
        .collect();
    assert_eq!(bytes, b"one, two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_echoed_and_scored() {
    let script = script();
    let engine = engine(&script, 1, 1).await;
    let mut asked = request("say:yes|");
    (asked.echo, asked.logprobs, asked.max_tokens) = (true, Some(1), Some(0));
    let told = read(engine.submit(asked.clone()).unwrap()).await;
    assert_eq!(told.text, "say:yes|");
    assert_eq!(
        (
            told.outcome().reason,
            told.outcome().usage.completion_tokens
        ),
        (FinishReason::Length, 0)
    );
    let Some(Event::Text { logprobs, .. }) = told
        .events
        .iter()
        .find(|event| matches!(event, Event::Text { .. }))
    else {
        panic!("{told:?}")
    };
    assert_eq!(logprobs.len(), "say:yes|".len());
    assert!(logprobs[0].top.is_empty() && logprobs[1].top.len() == 1);
    asked.max_tokens = None;
    let told = read(engine.submit(asked).unwrap()).await;
    assert_eq!(told.text, "say:yes|yes");
    let logprobs = told.events.iter().filter_map(|event| match event {
        Event::Text { logprobs, .. } => Some(logprobs),
        _ => None,
    });
    let bytes: Vec<u8> = logprobs
        .flatten()
        .flat_map(|token| token.chosen.bytes.clone())
        .collect();
    assert_eq!(
        bytes, b"say:yes|yes",
        "the prompt's, then the answer's, in order"
    );
}

/// Each row of a scored prompt asks for logits, for which memory is planned once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scored_prompts_have_turns() {
    let script = script();
    let engine = engine(&script, 3, 3).await;
    script.hold();
    let plain = engine.submit(request("say:first|"));
    script.wait_until_held();
    let text = |name: &str| format!("{}say:{name}|", name.repeat(40));
    let scored = ["b", "c"].map(|name| {
        let mut asked = request(&text(name));
        (asked.echo, asked.logprobs) = (true, Some(1));
        engine.submit(asked).unwrap()
    });
    script.open();
    assert_eq!(read(plain.unwrap()).await.text, "first");
    for (name, events) in ["b", "c"].into_iter().zip(scored) {
        assert_eq!(read(events).await.text, text(name) + name);
    }
    let asking = |rows: &Vec<Row>| rows.iter().filter(|row| row.logits).count();
    let most = script.steps().iter().map(asking).max();
    assert!(
        most.is_some_and(|most| (8..=16 + 2).contains(&most)),
        "{most:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_answered_and_bounded() {
    let script = script();
    let engine = engine(&script, 1, 1).await;
    let embed = |inputs| Question::Embed {
        client: "test".into(),
        inputs,
        deadline_ms: None,
    };
    let tokenize = |text: String| Question::Tokenize {
        text,
        add_special: false,
        parse_special: false,
    };
    let told = engine.ask(tokenize("hi".into())).await.unwrap();
    assert_eq!(
        told,
        Answer::Tokens(vec![(Token(104), b"h".into()), (Token(105), b"i".into())])
    );
    let told = engine
        .ask(Question::Detokenize {
            tokens: vec![Token(104), Token(105)],
        })
        .await
        .unwrap();
    assert_eq!(told, Answer::Text("hi".into()));
    for (question, reason) in [
        (tokenize("x".repeat(70_000)), "at most 65536 tokens"),
        (
            Question::Detokenize {
                tokens: vec![Token(104); 70_000],
            },
            "at most 65536 tokens",
        ),
        (
            Question::Detokenize {
                tokens: vec![Token(9999)],
            },
            "there is no token 9999",
        ),
        (embed(Vec::new()), "texts at once"),
    ] {
        match engine.ask(question).await {
            Err(EngineError::BadRequest(text)) => assert!(text.contains(reason), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    let texts = ["ab", "c"].map(|text| Prompt::Text(text.into()));
    let Answer::Embeddings(embedded) = engine.ask(embed(texts.into())).await.unwrap() else {
        panic!("no embeddings")
    };
    assert_eq!((embedded.vectors.len(), embedded.prompt_tokens), (2, 3));
}

/// An engine whose template leaves it to the model whether to think, or opens its reasoning.
async fn thinking_engine(script: &Arc<Script>, opened: bool) -> EngineHandle {
    let mut options = options(script, 1, 4);
    let opened = if opened { "<think>\n" } else { "" };
    let template =
        "{% for message in messages %}{{ message.content }}{% endfor %}{# <think></think> #}";
    options.config.chat_template = Some(format!("{template}{opened}"));
    let engine = EngineHandle::start(options).unwrap();
    engine.loaded().await;
    engine
}

fn chat(text: &str) -> pocket_llm::engine::Request {
    pocket_llm::engine::Request {
        prompt: Prompt::Messages(vec![Message::new(Role::User, text)]),
        ..request("")
    }
}

/// The texts and the bytes of the tokens with log-probabilities, of the reasoning and of the answer.
fn scored(told: &scripted::Told) -> [(String, String); 2] {
    [true, false].map(|wanted| {
        let (mut said, mut bytes) = (String::new(), Vec::new());
        for event in &told.events {
            if let Event::Text {
                text,
                thinking,
                logprobs,
            } = event
                && *thinking == wanted
            {
                said.push_str(text);
                bytes.extend(logprobs.iter().flat_map(|token| token.chosen.bytes.clone()));
            }
        }
        (said, String::from_utf8(bytes).unwrap())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probabilities_are_those_of_the_answers_own_tokens() {
    let script = script();
    let engine = thinking_engine(&script, false).await;
    for (said, thought, answer, reasoning_tokens) in [
        (" <think>Hm <b>!</think>\n\nYes, é", "Hm <b>!", "Yes, é", 7),
        ("Yes, é</think>", "", "Yes, é</think>", 0),
        (" <th", "", " <th", 0),
        ("<think>on and on", "on and on", "", 9),
    ] {
        let mut asked = chat(&format!("say:{said}|"));
        (asked.logprobs, asked.stop) = (Some(0), vec!["-".into(), "s, ö".into()]);
        let told = read(engine.submit(asked).unwrap()).await;
        let expected = [(thought, ""), (answer, answer)];
        let expected = expected.map(|(text, bytes)| (text.to_owned(), bytes.to_owned()));
        assert_eq!(scored(&told), expected, "{said}");
        assert_eq!(
            told.outcome().usage.reasoning_tokens,
            reasoning_tokens,
            "{said}"
        );
    }
}

/// What the loop did with this, which was there before it began, until `enough`.
fn looped(
    script: &Arc<Script>,
    inbounds: Vec<Inbound>,
    rest: Duration,
    enough: impl Fn(&[(RequestId, Event)], &WorkerStats) -> bool,
) -> Vec<(RequestId, Event)> {
    let mut told = Vec::new();
    loops(script, inbounds, rest, |report| {
        told.extend(report.events);
        !enough(&told, &report.stats)
    });
    told
}

/// Runs the loop with this, until `report` says that nobody listens.
fn loops(
    script: &Arc<Script>,
    inbounds: Vec<Inbound>,
    rest: Duration,
    mut report: impl FnMut(Report) -> bool,
) {
    let sizes = Sizes {
        sequences: 1,
        context_per_sequence: 1024,
        batch_size: 64,
        step_ms: 300,
        pooling: Pooling::Last,
        embedding_rest: rest,
        cache_bytes: 0,
        cache_scope: CacheScope::Server,
        costs: None,
        draft_rows: 0,
    };
    let (sender, inbox) = sync_channel(inbounds.len());
    for inbound in inbounds {
        sender.try_send(inbound).ok().unwrap();
    }
    let mut decoder = ScriptedDecoder::new(script);
    let vocab = Arc::new(ByteVocab::new());
    run(sizes, vocab, (&mut decoder, None), &inbox, &mut report);
}

#[test]
fn a_first_token_is_told_as_one_where_a_step_follows() {
    for (max_tokens, expected) in [
        (3, vec![false, true, false, false]),
        (1, vec![false, false]),
    ] {
        let Inbound::Arrival(mut asked) = stream(1) else {
            unreachable!()
        };
        asked.max_tokens = max_tokens;
        let mut firsts = Vec::new();
        let asked = vec![Inbound::Arrival(asked)];
        loops(&script(), asked, Duration::MAX, |report| {
            firsts.push(report.first);
            !report.events.iter().any(|(_, event)| event.is_last())
        });
        assert_eq!(firsts, expected, "accepted, then {max_tokens} tokens");
    }
}

fn ended(told: &[(RequestId, Event)]) -> usize {
    told.iter().filter(|(_, event)| event.is_last()).count()
}

/// A question whose texts are so many tokens of this letter.
fn texts(id: RequestId, client: &str, texts: &[usize], deadline: Option<Instant>) -> Inbound {
    let letter = Token(u32::from(client.as_bytes()[0]));
    let texts = texts.iter().map(|length| vec![letter; *length]).collect();
    let asked = Texts::new((id, client.into()), texts, deadline, Arc::default());
    Inbound::Embed(Box::new(asked))
}

/// A request that begins to answer at once and does not end.
fn stream(id: RequestId) -> Inbound {
    let prompt: Vec<Token> = b"loop:x|".map(|byte| Token(u32::from(byte))).into();
    Inbound::Arrival(Box::new(Arrival {
        id,
        client: "test".into(),
        max_tokens: 500,
        sampler: Sampler::new(&Sampling::GREEDY, &prompt),
        constraint: None,
        text: TextStream::new(&[], Think::Off),
        calls: None,
        likelihoods: None,
        prompt,
        echo: None,
        ignore_eos: false,
        reuse: true,
        arrived: Instant::now(),
        deadline: None,
        cancelled: Arc::default(),
    }))
}

#[test]
fn embeddings_take_turns_between_clients() {
    let script = script();
    let asked = vec![
        texts(1, "a", &[100, 1, 1], None),
        texts(2, "a", &[1, 1], None),
        texts(3, "b", &[1, 1], None),
    ];
    let told = looped(&script, asked, Duration::MAX, |told, _| ended(told) == 3);
    let begun = script.embedded();
    let begun = begun.iter().filter(|(_, position)| *position == 0);
    let order: String = begun
        .map(|(tokens, _)| char::from(u8::try_from(tokens[0].0).unwrap()))
        .collect();
    assert_eq!(order, "ababaaa", "one of the other client's for each text");
    let ended: Vec<RequestId> = told.iter().map(|(id, _)| *id).collect();
    assert_eq!(ended, [3, 2, 1]);
}

#[test]
fn embeddings_beside_a_stream_are_a_few_rows_at_a_time() {
    let script = script();
    let asked = vec![stream(1), texts(2, "a", &[100], None)];
    looped(&script, asked, Duration::MAX, |told, _| ended(told) == 1);
    let rows: Vec<usize> = script
        .embedded()
        .iter()
        .map(|(tokens, _)| tokens.len())
        .collect();
    assert_eq!(rows.iter().sum::<usize>(), 100);
    assert!(
        rows.iter().all(|rows| *rows <= EMBEDDING_ROWS as usize),
        "{rows:?}"
    );
    assert!(script.steps().len() >= rows.len(), "the stream goes on");
    // Alone they are more.
    let alone = vec![texts(3, "a", &[100], None)];
    looped(&script, alone, Duration::MAX, |told, _| ended(told) == 1);
    let longest = script
        .embedded()
        .iter()
        .map(|(tokens, _)| tokens.len())
        .max();
    assert!(longest > Some(EMBEDDING_ROWS as usize));
}

#[test]
fn what_embeddings_take_is_told_and_given_back_after_a_rest() {
    let script = script();
    let taken = std::cell::RefCell::new(Vec::new());
    let asked = vec![texts(1, "a", &[3], None)];
    looped(&script, asked, Duration::ZERO, |told, stats| {
        taken.borrow_mut().push(stats.embedding_bytes);
        ended(told) == 1 && stats.embedding_bytes == 0
    });
    assert_eq!(taken.into_inner(), [EMBEDDING_BYTES, 0]);
    // And while an answer keeps the loop busy.
    let asked = vec![stream(2), texts(3, "a", &[3], None)];
    looped(&script, asked, Duration::ZERO, |told, stats| {
        ended(told) == 1 && stats.embedding_bytes == 0
    });
}

#[test]
fn embeddings_have_a_deadline() {
    let script = script();
    let now = Instant::now();
    let asked = vec![
        texts(1, "a", &[3], Some(now)),
        texts(2, "b", &[3], Some(now + Duration::from_hours(1))),
    ];
    let told = looped(&script, asked, Duration::MAX, |told, _| ended(told) == 2);
    assert_eq!(told[0], (1, Event::Failed(EngineError::DeadlineExceeded)));
    assert!(matches!(&told[1], (2, Event::Answered(_))), "{told:?}");
    assert_eq!(
        script.embedded().len(),
        1,
        "no work is spent on who is late"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_fits_no_frame_is_one_requests_failure() {
    let script = script();
    let mut options = options(&script, 1, 4);
    // Twice the chat, and six bytes for each of its characters on the way: 72 MiB.
    let template = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}";
    options.config.chat_template = Some(template.into());
    let engine = EngineHandle::start(options).unwrap();
    engine.loaded().await;
    let chat = vec![Message::new(Role::User, "\u{1}".repeat(6 << 20))];
    let render = |messages| Question::Render {
        messages,
        tools: None,
    };
    match engine.ask(render(chat)).await {
        Err(EngineError::BadRequest(why)) => assert!(why.contains("too large"), "{why}"),
        other => panic!("{:.200}", format!("{other:?}")),
    }
    assert_eq!(engine.load().restarts, 0, "the worker lives");
    let chat = vec![Message::new(Role::User, "ab")];
    let small = engine.ask(render(chat)).await;
    assert_eq!(small, Ok(Answer::Text("abab".into())));
}
