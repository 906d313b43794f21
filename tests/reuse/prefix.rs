//! Beginnings that a sequence has already, or is about to have.

use crate::scripted::{Script, engine, read, request, until};
use crate::{engine_with, rows};
use pocket_llm::engine::{CacheScope, EngineHandle, Event, Request};
use std::sync::Arc;

/// 400 tokens that everybody begins with.
fn common() -> String {
    "You are a helpful assistant. ".repeat(14)[..400].to_owned()
}

fn ask(number: usize) -> Request {
    request(&format!("{}say:{number}|", common()))
}

async fn cached(engine: &EngineHandle, request: Request) -> u32 {
    let told = read(engine.submit(request).unwrap()).await;
    told.outcome().usage.cached_tokens
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_who_come_together_decode_their_prefix_once() {
    let script = Arc::new(Script::default());
    let engine = engine(&script, 10, 10).await;
    script.hold();
    let generations: Vec<_> = (0..10)
        .map(|number| engine.submit(ask(number)).unwrap())
        .collect();
    // The first step may begin before the last request is there; they are let in before the prefix is done.
    until("all have a sequence", || {
        engine.load().worker.running == 10 || {
            script.allow(1);
            false
        }
    })
    .await;
    script.open();
    for (number, generation) in generations.into_iter().enumerate() {
        let told = read(generation).await;
        assert_eq!(told.text, number.to_string());
        let cached = told.outcome().usage.cached_tokens;
        assert!(cached == 0 || cached >= 400, "{cached}");
    }
    // Each has 6 more tokens, and says 2 of which the last is not decoded.
    let decoded = rows(&script);
    assert!(decoded <= 400 + 10 * 7, "{decoded} rows");
    assert_eq!(script.states(), 0, "nothing in transit is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waited_for_one_that_left_goes_on_without_it() {
    let script = Arc::new(Script::default());
    let engine = engine(&script, 4, 4).await;
    script.hold();
    let first = engine.submit(ask(0)).unwrap();
    script.wait_until_held();
    let others: Vec<_> = (1..4)
        .map(|number| engine.submit(ask(number)).unwrap())
        .collect();
    until("all have a sequence", || {
        engine.load().worker.running == 4 || {
            script.allow(1);
            false
        }
    })
    .await;
    let before = rows(&script);
    assert!(before < 400, "{before} rows: the prefix is not done");
    drop(first);
    script.open();
    for (number, generation) in (1..).zip(others) {
        assert_eq!(read(generation).await.text, number.to_string());
    }
    let decoded = rows(&script);
    assert!(
        decoded <= 400 + 128 + 3 * 7,
        "{decoded} rows: what the first had decoded is used, and the rest decoded once"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_step_takes_nobody_along_who_waited_for_it() {
    let script = Arc::new(Script::default());
    let engine = engine(&script, 3, 3).await;
    script.hold();
    let first = engine.submit(ask(0)).unwrap();
    script.wait_until_held();
    let others: Vec<_> = (1..3)
        .map(|number| engine.submit(ask(number)).unwrap())
        .collect();
    until("all have a sequence", || {
        engine.load().worker.running == 3 || {
            script.allow(1);
            false
        }
    })
    .await;
    script.fail(script.steps().len());
    script.open();
    assert!(matches!(
        read(first).await.events.last(),
        Some(Event::Failed(_))
    ));
    for (number, generation) in (1..).zip(others) {
        assert_eq!(read(generation).await.text, number.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_request_lends_its_prefix() {
    let script = Arc::new(Script::default());
    let engine = engine(&script, 2, 2).await;
    script.hold();
    let stream = engine
        .submit(request(&format!("{}loop:la |", common())))
        .unwrap();
    until("it speaks", || {
        engine.load().worker.decode_rows > 3 || {
            script.allow(1);
            false
        }
    })
    .await;
    script.open();
    assert_eq!(cached(&engine, ask(1)).await, 400);
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_that_lost_its_sequence_comes_back() {
    let script = Arc::new(Script::default());
    let engine = engine(&script, 1, 1).await;
    let first = "a".repeat(300);
    assert_eq!(cached(&engine, request(&format!("{first}say:x|"))).await, 0);
    assert_eq!(
        cached(&engine, request(&format!("{}say:y|", "b".repeat(300)))).await,
        0
    );
    assert_eq!(script.states(), 1);
    let next = request(&format!("{first}say:x|x and now: say:z|"));
    assert_eq!(cached(&engine, next).await, 307);
    assert_eq!(
        script.states(),
        2,
        "the other one is kept aside in its turn"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_aside_stays_within_its_limit() {
    let script = Arc::new(Script::default());
    let engine = engine_with(&script, 1, |config| config.cache_bytes = Some(1000)).await;
    for letter in 'a'..='p' {
        cached(
            &engine,
            request(&format!("{}say:x|", letter.to_string().repeat(300))),
        )
        .await;
        assert!(engine.load().worker.saved_bytes <= 1000);
        assert!(script.states() <= 3);
    }
    assert_eq!(script.states(), 3);
    let none = Arc::new(Script::default());
    let engine = engine_with(&none, 1, |config| config.cache_bytes = Some(0)).await;
    for letter in 'a'..='d' {
        cached(
            &engine,
            request(&format!("{}say:x|", letter.to_string().repeat(300))),
        )
        .await;
    }
    assert_eq!(none.states(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_forgets_is_continued_where_prompts_part() {
    let script = Arc::new(Script::default());
    script.forget_beyond(20);
    let engine = engine(&script, 1, 1).await;
    let ask = |number: &str| request(&format!("{}{}say:{number}|", common(), number.repeat(100)));
    assert_eq!(cached(&engine, ask("1")).await, 0);
    assert_eq!(
        cached(&engine, ask("2")).await,
        0,
        "nobody knew that they would part here"
    );
    assert_eq!(cached(&engine, ask("3")).await, 400);
    // And those who come together know it at once.
    let script = Arc::new(Script::default());
    script.forget_beyond(20);
    let engine = crate::scripted::engine(&script, 3, 3).await;
    script.hold();
    let generations = ["4", "5", "6"].map(|number| engine.submit(ask(number)).unwrap());
    until("all have a sequence", || {
        engine.load().worker.running == 3 || {
            script.allow(1);
            false
        }
    })
    .await;
    script.open();
    let mut sum = 0;
    for generation in generations {
        sum += read(generation).await.outcome().usage.cached_tokens;
    }
    assert_eq!(sum, 800);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scope_keeps_clients_apart() {
    let script = Arc::new(Script::default());
    let engine = engine_with(&script, 3, |config| config.cache_scope = CacheScope::Client).await;
    let from = |client: &str| Request {
        client: client.into(),
        ..ask(1)
    };
    assert_eq!(cached(&engine, from("a")).await, 0);
    assert_eq!(cached(&engine, from("b")).await, 0);
    assert_eq!(cached(&engine, from("a")).await, 405);
    assert_eq!(cached(&engine, from("b")).await, 405);
}
