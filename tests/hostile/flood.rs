//! A client that floods an engine, and one that asks once.

use crate::scripted::{Script, engine, read, request};
use pocket_llm::engine::{EngineError, Event, Request};
use std::sync::Arc;

fn from(client: &str, text: &str) -> Request {
    Request {
        client: client.into(),
        ..request(text)
    }
}

/// The modest one gets a place while the flood has all that one client may have, and its turn before the flood's second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_leaves_others_a_place_and_a_turn() {
    let script = Arc::new(Script::default());
    let engine = engine(&script, 1, 17).await;
    script.hold();
    let mut flood = Vec::new();
    let own = loop {
        match engine.submit_fairly(from("flood", "say:flood|")) {
            Ok(generation) => flood.push(generation),
            Err(EngineError::ShareTaken { own, .. }) => break own as usize,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!((own, flood.len()), (16, 16), "of 18 places");
    let modest = engine.submit_fairly(from("modest", "say:modest|")).unwrap();
    script.open();
    let told = read(modest).await;
    assert_eq!(told.text, "modest");
    // Sixteen came before it; the flood's next one is all that it waits for.
    let queued = told.events.iter().find_map(|event| match event {
        Event::Accepted { position, .. } => Some(*position),
        _ => None,
    });
    assert!(queued <= Some(1), "{queued:?}");
    for generation in flood {
        assert_eq!(read(generation).await.text, "flood");
    }
    assert_eq!(engine.in_flight(), 0);
}
