//! Answers of every bad kind, one after the other: what is accepted is right, and what can't be is told.

use super::hub::{Act, At, Blob, Describes, Hub, SIGNATURE};
use super::model::{Place, digest_of, gguf, settings};
use pocket_llm::models::download::{DownloadError, PIECE_BYTES, Settings};
use std::time::Duration;

const LENGTH: usize = 900_001;

fn start() -> (Hub, Place) {
    let hub = Hub::start(gguf(1, LENGTH));
    let place = Place::new(&hub);
    (hub, place)
}

/// Where the requests for the file's bytes began, and what was sent.
fn ranges(hub: &Hub) -> Vec<(u16, usize, usize)> {
    let seen = hub.seen_at(At::Store);
    seen.iter()
        .map(|seen| (seen.status, seen.from, seen.sent))
        .collect()
}

fn succeeds(hub: &Hub, place: &Place) {
    let pulled = place.pull().unwrap();
    let blob = hub.blob();
    assert!(
        place.bytes().unwrap() == *blob.bytes,
        "another file was accepted"
    );
    assert_eq!(pulled.sha256, Some(digest_of(&blob.bytes)));
    place.assert_tidy();
}

fn fails(place: &Place) -> DownloadError {
    let error = place.pull().unwrap_err();
    assert_eq!(place.bytes(), None);
    let text = format!("{error} {error:?}");
    assert!(!text.contains("s3cr3t"), "{text}");
    error
}

#[test]
fn an_honest_hub_is_asked_once() {
    let (hub, place) = start();
    succeeds(&hub, &place);
    let seen = hub.seen();
    let targets: Vec<_> = seen.iter().map(|seen| seen.target.as_str()).collect();
    let commit = super::hub::COMMIT;
    assert_eq!(
        targets,
        [
            "/api/models/owner/name/revision/main?blobs=true".to_owned(),
            format!("/owner/name/resolve/{commit}/model.gguf"),
            format!("/blobs/1?{SIGNATURE}"),
        ]
    );
    for seen in &seen {
        assert_eq!(seen.headers["accept-encoding"], "identity");
        assert!(!seen.headers.contains_key("range"));
    }
    // What is there is not asked for again.
    place.pull().unwrap();
    assert_eq!(hub.seen(), []);
    let manifest = place
        .puller
        .store
        .list()
        .unwrap()
        .remove(0)
        .manifest
        .unwrap();
    assert_eq!(manifest.revision.as_deref(), Some(commit));
    assert_eq!(manifest.etag, Some(hub.blob().etag));
    assert_eq!(manifest.sha256, Some(digest_of(&hub.blob().bytes)));
}

#[test]
fn cuts_are_continued_where_they_were() {
    let (hub, place) = start();
    let cuts = [
        1,
        3,
        4,
        PIECE_BYTES - 1,
        PIECE_BYTES,
        PIECE_BYTES + 1,
        0,
        100_000,
    ];
    hub.script(At::Store, cuts.map(Act::cut));
    succeeds(&hub, &place);
    let ranges = ranges(&hub);
    let mut from = 0;
    for (range, cut) in ranges.iter().zip(cuts) {
        let status = if from == 0 { 200 } else { 206 };
        assert_eq!(*range, (status, from, cut));
        from += cut;
    }
    assert_eq!(ranges.len(), cuts.len() + 1);
    assert_eq!(ranges.iter().map(|range| range.2).sum::<usize>(), LENGTH);
}

#[test]
fn ranges_are_asked_for_by_strong_tags_only() {
    for (etag, if_range) in [(None, true), (Some("W/\"weak\""), false), (Some(""), false)] {
        let (hub, place) = start();
        let tagged = |cut| Act {
            etag: etag.map(Into::into),
            cut,
            ..Act::default()
        };
        hub.script(At::Store, [tagged(Some(300_000)), tagged(None)]);
        succeeds(&hub, &place);
        let seen = hub.seen_at(At::Store);
        assert_eq!(
            seen[1].headers.contains_key("if-range"),
            if_range,
            "{etag:?}"
        );
        // The digest is known, so the parts may be put together either way.
        assert_eq!((seen[1].status, seen[1].from), (206, 300_000), "{etag:?}");
    }
}

#[test]
fn without_tag_and_digest_a_cut_begins_anew() {
    for etag in ["", "W/\"weak\""] {
        let (hub, place) = start();
        hub.describe(Describes::Nothing, false);
        let tagged = |cut| Act {
            etag: Some(etag.into()),
            cut,
            ..Act::default()
        };
        hub.script(At::Store, [tagged(Some(600_000)), tagged(None)]);
        succeeds(&hub, &place);
        assert_eq!(ranges(&hub), [(200, 0, 600_000), (200, 0, LENGTH)]);
    }
}

#[test]
fn a_file_that_changes_under_its_tag_is_noticed() {
    let (hub, place) = start();
    hub.describe(Describes::Nothing, false);
    hub.script(At::Store, [Act::cut(600_000)]);
    let other = Blob::of(gguf(2, LENGTH + 5));
    // Another tag: the server itself says so.
    let settings = Settings {
        attempts: 1,
        ..settings()
    };
    let first = Place::with(&hub, settings);
    fails(&first);
    assert_eq!(first.partial_length(), 600_000);
    hub.change(other);
    let again = Place {
        folder: first.folder,
        puller: place.puller.clone(),
    };
    let puller = pocket_llm::models::download::Puller {
        store: first.puller.store,
        ..again.puller.clone()
    };
    let again = Place { puller, ..again };
    hub.seen();
    succeeds(&hub, &again);
    assert_eq!(ranges(&hub), [(200, 0, LENGTH + 5)]);
}

#[test]
fn a_file_that_changes_and_keeps_its_tag_is_noticed_by_its_digest() {
    let (hub, place) = start();
    let right = hub.blob();
    let wrong = Blob {
        bytes: Blob::of(gguf(2, LENGTH)).bytes,
        etag: right.etag.clone(),
    };
    let mut liar = Act {
        body: Some(wrong.bytes[..600_000].to_vec()),
        length_lie: i64::try_from(LENGTH - 600_000).unwrap(),
        ..Act::default()
    };
    liar = liar.with("ETag", right.etag);
    hub.script(At::Store, [liar]);
    succeeds(&hub, &place);
    assert_eq!(
        ranges(&hub),
        [
            (200, 0, 600_000),
            (206, 600_000, LENGTH - 600_000),
            (200, 0, LENGTH)
        ]
    );
}

#[test]
fn one_wrong_byte_costs_the_file_once_more_and_two_are_an_error() {
    let (hub, place) = start();
    let flip = |at| Act {
        flip: Some(at),
        ..Act::default()
    };
    hub.script(At::Store, [flip(LENGTH - 1)]);
    succeeds(&hub, &place);
    assert_eq!(ranges(&hub), [(200, 0, LENGTH), (200, 0, LENGTH)]);

    let (hub, place) = start();
    hub.script(At::Store, [flip(500_000), flip(4)]);
    let error = fails(&place);
    assert!(
        matches!(error, DownloadError::WrongContent { .. }),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains(&digest_of(&hub.blob().bytes).to_string()),
        "{error}"
    );
    assert!(!place.partial().exists());
    succeeds(&hub, &place);
}

#[test]
fn lies_about_lengths_are_not_believed() {
    let lie = |length_lie| Act {
        length_lie,
        ..Act::default()
    };
    for describes in [Describes::All, Describes::Nothing] {
        for length_lie in [1, 100_000] {
            let (hub, place) = start();
            hub.describe(describes, describes == Describes::Nothing);
            hub.script(At::Store, [lie(length_lie)]);
            succeeds(&hub, &place);
        }
    }
    // Too short is seen before the first byte.
    let (hub, place) = start();
    hub.script(At::Store, [lie(-1), lie(-800_000)]);
    succeeds(&hub, &place);
    // Nobody knows the length, and the server claims too much: the end is found all the same.
    let (hub, place) = start();
    hub.describe(Describes::Nothing, false);
    hub.script(At::Store, [lie(5)]);
    succeeds(&hub, &place);
    let statuses: Vec<_> = ranges(&hub).iter().map(|range| range.0).collect();
    assert_eq!(statuses, [200, 416, 200]);
}

#[test]
fn chunks_are_a_file_too() {
    let chunked = |cut, extra: &[u8]| Act {
        chunked: true,
        cut,
        extra: extra.to_vec(),
        ..Act::default()
    };
    for describes in [Describes::All, Describes::Nothing] {
        let (hub, place) = start();
        hub.describe(describes, false);
        hub.script(
            At::Store,
            [
                chunked(Some(300_000), b""),
                chunked(Some(300_000), b""),
                chunked(None, b""),
            ],
        );
        succeeds(&hub, &place);
        assert_eq!(ranges(&hub).last(), Some(&(206, 600_000, LENGTH - 600_000)));
    }
    // Longer than promised.
    let (hub, place) = start();
    hub.script(At::Store, [chunked(None, b"more")]);
    succeeds(&hub, &place);
    let (hub, place) = start();
    hub.script(At::Store, [chunked(None, b"more"), chunked(None, b"more")]);
    assert!(matches!(fails(&place), DownloadError::WrongContent { .. }));
}

#[test]
fn a_body_without_an_end_is_believed_only_if_its_length_is_known() {
    let unstated = |cut| Act {
        unstated: true,
        cut,
        ..Act::default()
    };
    let (hub, place) = start();
    hub.script(At::Store, [unstated(Some(10)), unstated(None)]);
    succeeds(&hub, &place);
    let (hub, place) = start();
    hub.describe(Describes::Nothing, false);
    hub.script(At::Store, std::iter::repeat_n(unstated(Some(600_000)), 8));
    assert!(fails(&place).to_string().contains("where it ends"));
}

#[test]
fn servers_that_ignore_ranges_send_it_all_again() {
    let (hub, place) = start();
    let deaf = |cut| Act {
        ignore_range: true,
        cut,
        ..Act::default()
    };
    hub.script(
        At::Store,
        [deaf(Some(700_000)), deaf(Some(600_000)), deaf(None)],
    );
    succeeds(&hub, &place);
    assert_eq!(
        ranges(&hub),
        [(200, 0, 700_000), (200, 0, 600_000), (200, 0, LENGTH)]
    );
    // One that never gets further than before is given up, although it sends megabytes.
    let (hub, place) = start();
    hub.script(At::Store, std::iter::repeat_n(deaf(Some(800_000)), 20));
    assert!(matches!(
        fails(&place),
        DownloadError::GaveUp { attempts: 8, .. }
    ));
}

#[test]
fn partial_answers_that_fit_nothing_are_not_believed() {
    let wrong: [Act; 4] = [
        Act {
            start_lie: 1,
            ..Act::default()
        },
        Act {
            start_lie: -1,
            ..Act::default()
        },
        Act {
            total_lie: 1,
            ..Act::default()
        },
        Act {
            status: Some(206),
            body: Some(vec![7; 1000]),
            ..Act::default()
        },
    ];
    for act in wrong {
        let (hub, place) = start();
        hub.script(At::Store, [Act::cut(400_000), act.clone(), act]);
        succeeds(&hub, &place);
    }
    // A part that nobody asked for, on top of bytes that can't be continued.
    let (hub, place) = start();
    hub.describe(Describes::Nothing, false);
    let untagged = |cut| Act {
        etag: Some(String::new()),
        cut,
        ..Act::default()
    };
    let unasked = Act {
        status: Some(206),
        body: Some(hub.blob().bytes.to_vec()),
        ..Act::default()
    };
    let range = format!("bytes 0-{}/{LENGTH}", LENGTH - 1);
    let unasked = unasked.with("Content-Range", range);
    hub.script(
        At::Store,
        [untagged(Some(400_000)), unasked, untagged(None)],
    );
    succeeds(&hub, &place);
}

#[test]
fn without_a_digest_parts_are_put_together_only_by_their_headers() {
    let cases = |hub: &Hub| {
        let bytes = hub.blob().bytes;
        let part = |etag: &str, start: usize, body: Vec<u8>| {
            Act {
                status: Some(206),
                body: Some(body),
                ..Act::default()
            }
            .with("ETag", etag.to_owned())
            .with(
                "Content-Range",
                format!("bytes {start}-{}/{LENGTH}", LENGTH - 1),
            )
        };
        let tag = hub.blob().etag;
        [
            // Another tag although the range was asked for by the old one; no tag.
            part("\"other\"", 400_000, vec![0; LENGTH - 400_000]),
            part("", 400_000, vec![0; LENGTH - 400_000]),
            // The right file from another place.
            part(&tag, 500_000, bytes[500_000..].to_vec()),
        ]
    };
    for case in 0..3 {
        let (hub, place) = start();
        hub.describe(Describes::Nothing, false);
        let [act, _, _] = {
            let mut acts = cases(&hub);
            acts.swap(0, case);
            acts
        };
        hub.script(At::Store, [Act::cut(400_000), act]);
        succeeds(&hub, &place);
    }
}

#[test]
fn pages_and_encoded_answers_are_no_files_and_cost_nothing() {
    let page = "<!DOCTYPE html><title>Welcome to this hotel</title>";
    let html = || Act::of(200, page).with("Content-Type", "text/html".into());
    let chunked = || Act {
        chunked: true,
        ..html()
    };
    let gzip = || Act::default().with("Content-Encoding", "gzip".into());
    let (hub, place) = start();
    hub.script(
        At::Store,
        [
            html(),
            Act::cut(400_000),
            html(),
            chunked(),
            gzip(),
            Act::cut(100_000),
        ],
    );
    succeeds(&hub, &place);
    // What had come before them was not thrown away.
    assert_eq!(ranges(&hub).last(), Some(&(206, 500_000, LENGTH - 500_000)));
    let (hub, place) = start();
    hub.describe(Describes::Nothing, false);
    hub.script(At::Store, std::iter::repeat_with(html).take(8));
    let error = fails(&place).to_string();
    assert!(error.contains("no GGUF file but text/html"), "{error}");
}

#[test]
fn silent_servers_are_left() {
    let (hub, _) = start();
    let place = Place::with(
        &hub,
        Settings {
            read_timeout: Duration::from_millis(100),
            response_timeout: Duration::from_millis(100),
            ..settings()
        },
    );
    let mute = Act {
        mute: true,
        ..Act::default()
    };
    hub.script(
        At::Store,
        [Act::stall(300_000), mute, Act::stall(0), Act::stall(5)],
    );
    succeeds(&hub, &place);
    assert_eq!(ranges(&hub).last(), Some(&(206, 300_005, LENGTH - 300_005)));
}

#[test]
fn busy_servers_are_asked_again() {
    let (hub, place) = start();
    let busy = [408, 425, 429, 500, 502, 503, 504].map(|status| Act::of(status, "busy"));
    hub.script(At::Hub, busy);
    succeeds(&hub, &place);
    let (hub, place) = start();
    hub.script(At::Api, [503, 429].map(|status| Act::of(status, "busy")));
    let later = |value: &str| Act::of(429, "later").with("Retry-After", value.into());
    // Longer than the cap, which is 20 ms here; a date; nonsense.
    hub.script(
        At::Hub,
        [
            later("3600"),
            later("Sun, 06 Nov 2094 08:49:37 GMT"),
            later("soon"),
        ],
    );
    succeeds(&hub, &place);
    let (hub, place) = start();
    hub.script(At::Hub, std::iter::repeat_n(Act::of(503, "busy"), 8));
    let error = fails(&place);
    assert!(
        matches!(error, DownloadError::GaveUp { attempts: 8, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("503"), "{error}");
    assert_eq!(hub.seen_at(At::Hub).len(), 8);
}

#[test]
fn what_would_not_change_is_told_at_once() {
    for status in [401, 403] {
        let (hub, place) = start();
        hub.script(At::Hub, [Act::of(status, "who are you?")]);
        let error = fails(&place).to_string();
        assert!(
            error.contains("HF_TOKEN") && error.contains("licence"),
            "{error}"
        );
        assert_eq!(hub.seen_at(At::Hub).len(), 1);
    }
    let (hub, place) = start();
    hub.script(At::Hub, [Act::of(404, "nothing")]);
    let error = fails(&place);
    assert!(matches!(error, DownloadError::NotFound { .. }), "{error}");
    assert!(
        error.to_string().contains("/owner/name/resolve/"),
        "{error}"
    );
    let (hub, place) = start();
    hub.script(At::Hub, [Act::of(400, "no")]);
    assert!(matches!(
        fails(&place),
        DownloadError::Status { status: 400, .. }
    ));
    // The hub lists no such file: nothing is asked for.
    let (hub, place) = start();
    hub.script(
        At::Api,
        [Act::of(200, r#"{"siblings":[{"rfilename":"Model.gguf"}]}"#)],
    );
    assert!(matches!(fails(&place), DownloadError::NoSuchFile(_)));
    assert_eq!(hub.seen_at(At::Hub), []);
    // A signature that has run out is no matter of tokens; the next try gets a new one.
    let (hub, place) = start();
    hub.script(
        At::Store,
        [Act::of(403, "expired"), Act::of(401, "expired")],
    );
    succeeds(&hub, &place);
}

#[test]
fn hubs_that_describe_nothing_are_good_enough() {
    for acts in [
        vec![Act::of(404, "no such API")],
        vec![Act::of(403, "no")],
        vec![Act::of(200, "<html>")],
        vec![Act::of(200, "{}")],
        vec![Act {
            body: Some(vec![b' '; (8 << 20) + 1]),
            ..Act::default()
        }],
    ] {
        let (hub, place) = start();
        hub.script(At::Api, acts);
        succeeds(&hub, &place);
    }
    // The redirect names the digest.
    let (hub, place) = start();
    hub.describe(Describes::Nothing, true);
    let flip = Act {
        flip: Some(700_000),
        ..Act::default()
    };
    hub.script(At::Store, [flip]);
    succeeds(&hub, &place);
    assert_eq!(ranges(&hub).len(), 2);
}

#[test]
fn a_disk_without_room_is_told_before_the_first_byte() {
    let (hub, _) = start();
    let place = Place::with(
        &hub,
        Settings {
            reserve_bytes: 1 << 60,
            ..settings()
        },
    );
    let error = fails(&place);
    assert!(matches!(error, DownloadError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("MiB"), "{error}");
    assert_eq!(place.partial_length(), 0);
}
