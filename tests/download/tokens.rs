//! A token goes to the server that it is for and to nobody else, and private networks are out of a client's reach.

use super::hub::{Act, At, Hub, SIGNATURE};
use super::model::{Place, gguf, reference, settings};
use pocket_llm::models::download::{
    DownloadError, Existing, Job, Progress, Reach, Token, fetch, parse_url,
};

const SECRET: &str = "hf_s3cr3t";

fn start() -> (Hub, Place) {
    let hub = Hub::start(gguf(3, 300_000));
    let mut place = Place::new(&hub);
    let token = Token::parse(SECRET);
    place.puller.hub = pocket_llm::models::download::Hub::new(&hub.endpoint(), token).unwrap();
    (hub, place)
}

/// Who was asked, and whether with the token.
fn asked(hub: &Hub) -> Vec<(At, bool)> {
    let with_token = |value: Option<&String>| match value.map(String::as_str) {
        Some("Bearer hf_s3cr3t") => true,
        None => false,
        Some(other) => panic!("another token: {other}"),
    };
    let seen = hub.seen();
    seen.iter()
        .map(|seen| (seen.at, with_token(seen.headers.get("authorization"))))
        .collect()
}

fn redirect(to: String) -> Act {
    Act::of(307, "moved").with("Location", to)
}

#[test]
fn another_port_of_the_same_host_gets_no_token() {
    let (hub, place) = start();
    place.pull().unwrap();
    assert_eq!(
        asked(&hub),
        [(At::Api, true), (At::Hub, true), (At::Store, false)]
    );
}

#[test]
fn another_name_of_the_same_host_gets_no_token() {
    let (hub, place) = start();
    let elsewhere = format!("http://localhost:{}/x?{SIGNATURE}", hub.address.port());
    hub.script(At::Hub, [redirect(elsewhere)]);
    place.pull().unwrap();
    assert_eq!(
        asked(&hub),
        [
            (At::Api, true),
            (At::Hub, true),
            (At::Hub, false),
            (At::Store, false)
        ]
    );
}

#[test]
fn the_same_server_gets_the_token_again() {
    let (hub, place) = start();
    hub.script(At::Api, [redirect("/api/models/renamed?blobs=true".into())]);
    hub.script(At::Hub, [redirect("../../moved/model.gguf".into())]);
    hub.script(At::Store, [redirect(format!("{}/back", hub.endpoint()))]);
    place.pull().unwrap();
    assert_eq!(
        asked(&hub),
        [
            (At::Api, true),
            (At::Api, true),
            (At::Hub, true),
            (At::Hub, true),
            (At::Store, false),
            (At::Hub, true),
            (At::Store, false),
        ]
    );
}

#[test]
fn redirects_end() {
    let (hub, place) = start();
    let back = || redirect("/again".into());
    hub.script(At::Hub, std::iter::repeat_with(back).take(50));
    let error = place.pull().unwrap_err();
    assert!(
        matches!(error, DownloadError::BadRedirect { .. }),
        "{error}"
    );
    assert_eq!(hub.seen_at(At::Hub).len(), 11);
    for bad in [
        Act::of(302, "nowhere"),
        redirect("file:///etc/passwd".into()),
        redirect(format!("http://user:{SECRET}@{}/", hub.store)),
        redirect(String::from("http://[::1")),
    ] {
        let (hub, place) = start();
        hub.script(At::Hub, [bad]);
        let error = place.pull().unwrap_err();
        assert!(
            matches!(error, DownloadError::BadRedirect { .. }),
            "{error}"
        );
        assert!(!format!("{error}{error:?}").contains("s3cr3t"), "{error:?}");
        assert_eq!(hub.seen_at(At::Hub).len(), 1);
    }
}

#[test]
fn no_secret_is_written_down_or_told() {
    let (hub, mut place) = start();
    place.puller.settings.attempts = 1;
    for act in [
        Act::cut(100_000),
        Act::of(503, "busy"),
        Act::of(404, "nothing"),
    ] {
        hub.script(At::Store, [act]);
        let error = place.pull().unwrap_err();
        assert!(!format!("{error}{error:?}").contains("s3cr3t"), "{error:?}");
    }
    let mut record = place.partial().into_os_string();
    record.push(".json");
    let record = std::fs::read_to_string(record).unwrap();
    assert!(record.contains("/owner/name/resolve/"), "{record}");
    assert!(
        record.contains(hub.blob().etag.trim_matches('"')),
        "{record}"
    );
    assert!(!record.contains("s3cr3t"), "{record}");
    assert!(!format!("{:?}", place.puller).contains("s3cr3t"));
    place
        .puller
        .pull(&reference(), Existing::Trust, &Progress::default())
        .unwrap();
}

#[test]
fn what_a_client_names_must_be_public() {
    let (hub, place) = start();
    let port = hub.store.port();
    // However it is written: names, numbers, other bases, short forms, IPv6, IPv4 within it.
    for host in [
        "127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::]",
        "0.0.0.0",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "10.1.2.3",
        "192.168.1.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00::1]",
        "[64:ff9b::7f00:1]",
    ] {
        let job = Job {
            url: parse_url(&format!("http://{host}:{port}/blobs/1")).unwrap(),
            token: None,
            bytes: None,
            sha256: None,
            target: place.folder.path().join("a.gguf"),
            reach: Reach::PublicOnly,
        };
        let settings = pocket_llm::models::download::Settings {
            attempts: 1,
            ..settings()
        };
        match fetch(&job, &settings, &Progress::default()) {
            Err(DownloadError::PrivateAddress { .. }) => {}
            // A resolver need not know each of these ways to write a number.
            Err(DownloadError::GaveUp { last, .. })
                if host.starts_with('0') || host == "LOCALHOST." =>
            {
                assert!(!last.contains("refused"), "{host}: {last}");
            }
            other => panic!("{host}: {other:?}"),
        }
    }
    assert_eq!(hub.seen(), []);
    // The operator may.
    let job = Job {
        url: parse_url(&format!("http://localhost:{port}/blobs/1")).unwrap(),
        token: None,
        bytes: None,
        sha256: None,
        target: place.folder.path().join("a.gguf"),
        reach: Reach::Any,
    };
    fetch(&job, &settings(), &Progress::default()).unwrap();
}
