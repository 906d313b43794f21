//! Downloads beside a server: one runs, eight wait, all can be watched and ended.

use super::hub::{Act, At, Hub};
use super::model::{NAME, Place, gguf, reference, settings};
use pocket_llm::models::download::{
    DownloadError, DownloadStatus, Downloads, Existing, How, Phase, Progress, Puller, Refused,
    Settings, Start,
};
use pocket_llm::models::{HubFile, ModelName, ModelRef};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const LENGTH: usize = 600_000;

/// Longer than any test: nothing here ends because a server was silent.
const NEVER: Duration = Duration::from_hours(1);

fn start() -> (Hub, Place) {
    let hub = Hub::start(gguf(5, LENGTH));
    let settings = Settings {
        read_timeout: NEVER,
        response_timeout: NEVER,
        ..settings()
    };
    let place = Place::with(&hub, settings);
    (hub, place)
}

fn other(number: usize) -> ModelRef {
    ModelRef::Hub(HubFile::parse(&format!("hf:owner/other{number}/model.gguf")).unwrap())
}

fn name() -> ModelName {
    ModelName::parse(NAME).unwrap()
}

/// Watches until the downloads are as wanted.
fn until(downloads: &Downloads, wanted: impl Fn(&[DownloadStatus]) -> bool) -> Vec<DownloadStatus> {
    let begun = Instant::now();
    loop {
        let all = downloads.snapshot();
        if wanted(&all) {
            return all;
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "in vain: {all:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn ended(all: &[DownloadStatus]) -> bool {
    all.iter().all(|one| one.phase == Phase::Ended)
}

#[test]
fn a_model_is_fetched_once_and_reported() {
    let (hub, place) = start();
    let downloads = Downloads::new(place.puller.clone());
    assert_eq!(downloads.snapshot(), []);
    assert_eq!(downloads.start(reference()).unwrap(), Start::Started);
    let all = until(&downloads, |all| !all.is_empty() && ended(all));
    let [one] = all.as_slice() else {
        panic!("{all:?}")
    };
    assert_eq!((&one.name, &one.error), (&name(), &None));
    assert_eq!(
        (one.received, one.total),
        (LENGTH as u64, Some(LENGTH as u64))
    );
    assert!(one.ended_at >= Some(one.started_at));
    assert_eq!(place.bytes().unwrap(), *hub.blob().bytes);
    let Start::AlreadyAvailable(pulled) = downloads.start(reference()).unwrap() else {
        panic!("fetched again");
    };
    assert_eq!(pulled.how, How::AlreadyThere);
    downloads.shutdown();
    assert!(matches!(downloads.start(other(1)), Err(Refused::Ending)));
}

#[test]
fn one_runs_eight_wait_and_a_cancel_takes_its_place_away() {
    let (hub, place) = start();
    hub.script(At::Store, [Act::stall(300_000)]);
    let downloads = Downloads::new(place.puller.clone());
    downloads.start(reference()).unwrap();
    hub.stalls.recv_timeout(Duration::from_mins(1)).unwrap();
    assert_eq!(downloads.start(reference()).unwrap(), Start::AlreadyRunning);
    for number in 0..8 {
        assert_eq!(downloads.start(other(number)).unwrap(), Start::Started);
    }
    assert_eq!(downloads.start(other(3)).unwrap(), Start::AlreadyRunning);
    assert!(matches!(downloads.start(other(8)), Err(Refused::Full)));
    let running = until(&downloads, |all| all[0].received == 300_000);
    assert_eq!(running[0].phase, Phase::Receiving);
    assert!(running[1..].iter().all(|one| one.phase == Phase::Waiting));
    // The last one never gets its turn; the first one's socket is shut down under it.
    let last = ModelName::from(HubFile::parse("hf:owner/other7/model.gguf").unwrap());
    assert!(downloads.cancel(&last));
    assert!(downloads.cancel(&name()));
    let all = until(&downloads, ended);
    assert!(!downloads.cancel(&name()));
    assert_eq!(all.len(), 9);
    for one in &all {
        let cancelled = one.name == name() || one.name == last;
        assert_eq!(one.error.is_some(), cancelled, "{one:?}");
    }
    // What came is kept.
    assert_eq!(place.partial_length(), 300_000);
    let seen = hub.seen_at(At::Store);
    assert!(seen[0].left, "it went only when the server did");
    assert_eq!(seen.len(), 8);
}

#[test]
fn the_next_one_runs_while_the_first_pauses() {
    let (hub, mut place) = start();
    place.puller.settings.retry_after_cap = NEVER;
    let later = Act::of(503, "later").with("Retry-After", "3000".into());
    hub.script(At::Api, [later]);
    let downloads = Downloads::new(place.puller.clone());
    downloads.start(reference()).unwrap();
    until(&downloads, |all| all[0].phase == Phase::Pausing);
    for number in 0..2 {
        downloads.start(other(number)).unwrap();
    }
    let fetched = |all: &[DownloadStatus]| all.iter().filter(|one| one.error.is_none()).count();
    let all = until(&downloads, |all| {
        all.iter().filter(|one| one.phase == Phase::Ended).count() == 2
    });
    assert_eq!((all[0].phase, fetched(&all)), (Phase::Pausing, 3));
    assert!(downloads.cancel(&name()));
    until(&downloads, ended);
}

#[test]
fn an_error_is_remembered_until_the_next_try() {
    let (hub, place) = start();
    hub.script(At::Hub, [Act::of(403, "no")]);
    let downloads = Downloads::new(place.puller.clone());
    downloads.start(reference()).unwrap();
    let all = until(&downloads, |all| !all.is_empty() && ended(all));
    assert!(
        all[0].error.as_ref().unwrap().contains("HF_TOKEN"),
        "{all:?}"
    );
    downloads.start(reference()).unwrap();
    let all = until(&downloads, |all| ended(all) && all[0].error.is_none());
    assert_eq!(all.len(), 1);
    let path = ModelRef::Path("a.gguf".into());
    assert!(matches!(
        downloads.start(path),
        Err(Refused::Download(DownloadError::Path(_)))
    ));
}

#[test]
fn a_shutdown_ends_what_runs_and_what_waits() {
    let (hub, place) = start();
    hub.script(At::Store, [Act::stall(100)]);
    let downloads = Downloads::new(place.puller.clone());
    downloads.start(reference()).unwrap();
    downloads.start(other(1)).unwrap();
    hub.stalls.recv_timeout(Duration::from_mins(1)).unwrap();
    downloads.shutdown();
    let all = downloads.snapshot();
    assert!(
        ended(&all) && all.iter().all(|one| one.error.is_some()),
        "{all:?}"
    );
    assert_eq!(hub.seen_at(At::Store).len(), 1);
}

#[test]
fn a_cancel_takes_effect_wherever_a_download_is() {
    let pause = || Act::of(503, "later").with("Retry-After", "3000".into());
    let no_head = || Act {
        hold_head: true,
        ..Act::default()
    };
    for (at, act, phase) in [
        (At::Api, no_head(), Phase::Asking),
        (At::Api, Act::of(200, "{}").stalled(1), Phase::Asking),
        (At::Api, pause(), Phase::Pausing),
        (At::Hub, no_head(), Phase::Connecting),
        (At::Hub, pause(), Phase::Pausing),
        (At::Store, no_head(), Phase::Connecting),
        (At::Store, Act::stall(0), Phase::Receiving),
    ] {
        let (hub, mut place) = start();
        place.puller.settings.retry_after_cap = NEVER;
        hub.script(at, [act]);
        let (result, _) = cancelled_in(&place.puller, phase, || hub.was_asked(at));
        assert!(
            matches!(result, Err(DownloadError::Cancelled)),
            "{phase:?}: {result:?}"
        );
        // And everything works afterwards.
        hub.forget_scripts();
        place.pull().unwrap();
        assert_eq!(place.bytes().unwrap(), *hub.blob().bytes);
    }
}

#[test]
fn a_cancel_takes_effect_while_another_process_fetches() {
    let (hub, place) = start();
    let lock = place.puller.store.lock(&place.target()).unwrap();
    let (result, progress) = cancelled_in(&place.puller, Phase::Locked, || true);
    assert!(
        matches!(result, Err(DownloadError::Cancelled)),
        "{result:?}"
    );
    assert_eq!(progress.phase(), Phase::Ended);
    assert_eq!(hub.seen(), []);
    drop(lock);
    place.pull().unwrap();
}

/// Pulls, and cancels when it is in this phase and ready.
fn cancelled_in(
    puller: &Puller,
    phase: Phase,
    ready: impl Fn() -> bool,
) -> (
    Result<pocket_llm::models::download::Pulled, DownloadError>,
    Arc<Progress>,
) {
    let progress = Arc::new(Progress::default());
    let pulling = {
        let (puller, progress) = (puller.clone(), Arc::clone(&progress));
        thread::spawn(move || puller.pull(&reference(), Existing::Trust, &progress))
    };
    while progress.phase() != phase || !ready() {
        assert!(!pulling.is_finished(), "it was never in {phase:?}");
        thread::sleep(Duration::from_micros(100));
    }
    progress.cancel();
    (pulling.join().unwrap(), progress)
}
