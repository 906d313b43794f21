//! Requests that end their worker: they are found by running them alone, refused, and cost nobody else an answer. Kills from
//! outside are nobody's fault.

use crate::poison::{CRASHES, KILLED, STOPS, notes};
use crate::scripted::{Told, read, request, until};
use crate::{died, first_text, with_worker};
use pocket_llm::engine::{
    Answer, EngineError, EngineHandle, EngineOptions, Event, Generation, Prompt, Question, Request,
};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// An engine whose worker can be poisoned.
struct Poisoned {
    engine: EngineHandle,
    notes: PathBuf,
    _folder: TempDir,
}

impl Poisoned {
    async fn start(parallel: u32, change: impl FnOnce(&mut EngineOptions)) -> Self {
        let folder = TempDir::new().unwrap();
        let notes = folder.path().join("notes");
        let part = format!("poisoned:{}", notes.display());
        let mut options = with_worker(&part, parallel, 16);
        change(&mut options);
        let engine = EngineHandle::start(options).unwrap();
        engine.loaded().await;
        Self {
            engine,
            notes,
            _folder: folder,
        }
    }

    /// How many sequences were in each step that ended a worker.
    fn beside(&self) -> Vec<usize> {
        let notes = notes(&self.notes);
        let counts = notes
            .iter()
            .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap());
        counts.collect()
    }

    async fn ask(&self, text: &str) -> Told {
        read(self.engine.submit(request(text)).unwrap()).await
    }

    fn restarts(&self) -> u64 {
        self.engine.load().restarts
    }
}

/// A prompt that takes many steps to decode, so that others are beside it.
fn slowly(text: &str) -> String {
    format!("{}{text}", "x".repeat(600))
}

/// Whether what has come of an answer so far is not all of it.
fn still_speaks(stream: &mut Generation) -> bool {
    std::iter::from_fn(|| stream.try_next()).all(|event| !event.is_last())
}

fn refusal(told: &Told) -> &str {
    match told.events.last() {
        Some(Event::Failed(EngineError::Refused(text))) => text,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn who_crashes_its_worker_is_refused_and_its_neighbours_are_served() {
    let mut in_company = 0;
    for (mark, end) in CRASHES {
        let here = Poisoned::start(4, |_| {}).await;
        // Both are decoded for many steps; the poison is through first.
        let mut beside: Vec<_> = (0..3)
            .map(|n| slowly(&format!("say:{n}|")))
            .map(|text| here.engine.submit(request(&text)).unwrap())
            .collect();
        let poison = format!("{}{mark} say:never|", "p".repeat(300));
        let poisoned = here.engine.submit(request(&poison)).unwrap();
        for n in 3..6 {
            let waiting = here.engine.submit(request(&format!("say:{n}|")));
            beside.push(waiting.unwrap());
        }
        let told = read(poisoned).await;
        let text = refusal(&told);
        assert!(text.contains(end) && text.contains("2 times"), "{text}");
        for (n, generation) in beside.into_iter().enumerate() {
            assert_eq!(read(generation).await.text, n.to_string(), "{mark}");
        }
        // Once beside others, but on a busy machine it may be there before they are; and twice alone.
        let among = here.beside();
        let company = among.len() - 2;
        assert!(
            company <= 1 && among[company..] == [1, 1],
            "{mark}: {among:?}"
        );
        in_company += company;
        let restarts = among.len() as u64;
        assert_eq!(here.restarts(), restarts);
        // Asked again, by another, it costs no worker.
        let mut again = request(&poison);
        again.client = "another".into();
        again.deadline_ms = Some(10_000);
        again.sampling.seed = 99;
        let told = read(here.engine.submit(again).unwrap()).await;
        assert_eq!(told.events.len(), 1);
        refusal(&told);
        assert_eq!(here.ask("say:fine|").await.text, "fine");
        assert_eq!(here.restarts(), restarts);
    }
    assert!(in_company > 0, "never beside others");
}

pub(crate) async fn several_poisons_at_once_are_all_found() {
    let here = Poisoned::start(4, |_| {}).await;
    // They begin in different ways: else three would wait for what the first one decodes.
    let texts = ["1 say:a|", "2 segv |", "3 abrt |", "4 say:b|"];
    let texts = texts.map(|text| format!("{}{text}", text[..1].repeat(600)));
    let all = texts.map(|text| here.engine.submit(request(&text)).unwrap());
    let waiting = here.engine.submit(request("say:c|")).unwrap();
    let [a, first, second, b] = all;
    refusal(&read(first).await);
    refusal(&read(second).await);
    for (generation, text) in [(a, "a"), (b, "b"), (waiting, "c")] {
        assert_eq!(read(generation).await.text, text);
    }
    // Once with all others about, and each of the two twice alone.
    assert_eq!(here.beside()[1..], [1; 4], "{:?}", here.beside());
    assert_eq!(here.restarts(), 5);
}

pub(crate) async fn whose_death_was_ordered_from_outside_is_never_refused() {
    let here = Poisoned::start(2, |_| {}).await;
    let popular = format!("{KILLED} say:served|");
    let mut tries = 0;
    // After three deaths in a row the clients are told to come back.
    let told = loop {
        let both = [(); 2].map(|()| here.engine.submit(request(&popular)).unwrap());
        let [first, second] = both;
        let (first, second) = (read(first).await, read(second).await);
        for told in [&first, &second] {
            let refused = matches!(
                told.events.last(),
                Some(Event::Failed(EngineError::Refused(_)))
            );
            assert!(!refused, "{told:?}");
        }
        tries += 1;
        if first.text == second.text && !first.text.is_empty() {
            break first;
        }
        assert!(tries < 10, "{first:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(told.text, "served");
    assert_eq!(here.beside().len(), 3, "killed three times");
}

pub(crate) async fn who_stops_its_worker_is_given_up_and_not_refused() {
    let here = Poisoned::start(2, |options| {
        options.stall = Duration::from_millis(200);
    })
    .await;
    for restarts in [2, 4] {
        let told = here.ask(&format!("{STOPS} say:x|")).await;
        assert!(died(&told).contains("no progress"), "{told:?}");
        until("it is replaced", || here.restarts() == restarts).await;
        assert_eq!(here.ask("say:fine|").await.text, "fine");
    }
}

pub(crate) async fn who_crashes_its_worker_after_speaking_is_found_too() {
    let here = Poisoned::start(4, |_| {}).await;
    let poison = "late-segv loop:x|";
    // In company: both have spoken, both are told, and both are suspects.
    let innocent = "say:abcdefghijklmnopqrstuvwxyz|";
    let beside = here.engine.submit(request(innocent)).unwrap();
    let poisoned = here.engine.submit(request(poison)).unwrap();
    for told in [read(beside).await, read(poisoned).await] {
        assert!(!told.text.is_empty());
        assert!(died(&told).contains("signal 11"));
    }
    // Again: alone, whoever else comes.
    for _ in 0..2 {
        let mut stream = here.engine.submit(request("say:first, and long|")).unwrap();
        first_text(&mut stream).await;
        let poisoned = here.engine.submit(request(poison)).unwrap();
        let others = [(); 3].map(|()| here.engine.submit(request("say:ok|")).unwrap());
        let told = read(poisoned).await;
        assert!(!told.text.is_empty() && died(&told).contains("signal 11"));
        let told = read(stream).await;
        assert!(
            matches!(told.events.last(), Some(Event::Finished(_))),
            "who was there before is served to the end"
        );
        for other in others {
            assert_eq!(read(other).await.text, "ok");
        }
    }
    assert_eq!(here.beside(), [2, 1, 1]);
    refusal(&here.ask(poison).await);
    let told = here.ask(innocent).await;
    assert_eq!(told.text, "abcdefghijklmnopqrstuvwxyz");
    assert_eq!(here.restarts(), 3);
}

pub(crate) async fn questions_that_crash_the_worker_are_refused() {
    let here = Poisoned::start(2, |_| {}).await;
    let embed = |text: &str| Question::Embed {
        client: "test".into(),
        inputs: vec![Prompt::Text(text.into())],
        deadline_ms: None,
    };
    for _ in 0..2 {
        let told = here.engine.ask(embed("segv|")).await;
        assert!(matches!(told, Err(EngineError::Refused(_))), "{told:?}");
    }
    assert_eq!(here.restarts(), 2);
    let told = here.engine.ask(embed("fine|")).await;
    assert!(matches!(told, Ok(Answer::Embeddings(_))), "{told:?}");
}

pub(crate) async fn a_suspect_that_leaves_or_is_late_holds_nobody_up() {
    let here = Poisoned::start(2, |_| {}).await;
    let suspects = ["late-segv loop:x|", "late-abrt loop:x|"];
    for suspect in suspects {
        died(&here.ask(suspect).await);
    }
    let mut stream = here.engine.submit(request("loop:y|")).unwrap();
    first_text(&mut stream).await;
    // Both wait until the worker is empty; one leaves, one is late.
    let gone = here.engine.submit(request(suspects[0])).unwrap();
    let late = Request {
        deadline_ms: Some(50),
        ..request(suspects[1])
    };
    let late = here.engine.submit(late).unwrap();
    let waiting = here.engine.submit(request("say:ok|")).unwrap();
    drop(gone);
    let told = read(late).await;
    assert_eq!(
        told.events.last(),
        Some(&Event::Failed(EngineError::DeadlineExceeded))
    );
    assert!(still_speaks(&mut stream), "deadlines count meanwhile");
    assert_eq!(read(waiting).await.text, "ok", "beside the stream");
    drop(stream);
    assert_eq!(here.restarts(), 2);
    // A worker whose last request has just left counts as empty soon.
    died(&here.ask(suspects[0]).await);
    assert_eq!(here.beside(), [1, 1, 1]);
}

pub(crate) async fn a_model_that_answers_nothing_is_not_the_requests_fault() {
    let here = Poisoned::start(2, |options| {
        options.restart_pause = Duration::from_millis(300);
    })
    .await;
    let mut tries = 0;
    loop {
        tries += 1;
        assert!(tries < 10, "every request is refused, none waits");
        let told = here.ask(&format!("segv {tries}|")).await;
        match told.events.last() {
            Some(Event::Failed(EngineError::Refused(_))) => {}
            Some(Event::Failed(EngineError::NotReady(reason))) => {
                assert!(reason.contains("signal 11"), "{reason}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(tries > 3, "{tries}: a few in a row are excused");
}

pub(crate) async fn a_suspect_that_gets_far_lets_others_in() {
    let here = Poisoned::start(4, |_| {}).await;
    let innocent = "loop:y|";
    let beside = here.engine.submit(request(innocent)).unwrap();
    let poisoned = here.engine.submit(request("late-segv loop:x|")).unwrap();
    died(&read(poisoned).await);
    died(&read(beside).await);
    let mut alone = here.engine.submit(request(innocent)).unwrap();
    first_text(&mut alone).await;
    assert_eq!(here.ask("say:ok|").await.text, "ok");
    assert!(still_speaks(&mut alone), "it would go on for a second");
    assert_eq!(here.restarts(), 1);
}
