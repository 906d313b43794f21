//! A hub on 127.0.0.1, and a second server where its files lie. Both do what a script says, and remember what they were asked.
//!
//! Speaks as much HTTP/1.1 as a download needs: one request per connection, ranges, `If-Range`, entity tags.

use super::model::digest_of;
use rustix::net::sockopt::set_socket_linger;
use std::collections::{HashMap, VecDeque};
// Writing to a string can't fail.
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A server that waits for a client waits no longer.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a signed URL's query holds, and nothing else may.
pub(crate) const SIGNATURE: &str = "X-Signature=s3cr3t";

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Which of the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum At {
    /// `/api/models/…`.
    Api,
    /// `/…/resolve/…`.
    Hub,
    /// The other server.
    Store,
}

/// How one request is answered. The default is honest.
#[derive(Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one way to be bad, and most tests name one"
)]
pub(crate) struct Act {
    /// Instead of the file.
    pub(crate) status: Option<u16>,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Option<Vec<u8>>,
    /// The connection ends after this many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// It ends by a reset.
    pub(crate) reset: bool,
    /// After this many bytes of the body nothing comes any more.
    pub(crate) stall: Option<usize>,
    /// The connection ends (or is held, as after a stall) where the file has this many bytes.
    pub(crate) until: Option<usize>,
    pub(crate) hold: bool,
    /// This byte of the file is another one.
    pub(crate) flip: Option<usize>,
    /// Added to `Content-Length`.
    pub(crate) length_lie: i64,
    /// Added to the start in `Content-Range`.
    pub(crate) start_lie: i64,
    /// Added to the total in `Content-Range`.
    pub(crate) total_lie: i64,
    pub(crate) ignore_range: bool,
    /// No `Content-Length`: chunks, or the end of the connection.
    pub(crate) chunked: bool,
    pub(crate) unstated: bool,
    /// Bytes behind the file's.
    pub(crate) extra: Vec<u8>,
    /// Instead of the file's entity tag; an empty one is none.
    pub(crate) etag: Option<String>,
    /// The connection ends before the head.
    pub(crate) mute: bool,
    /// The head never comes.
    pub(crate) hold_head: bool,
}

/// One request and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) at: At,
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) status: u16,
    /// First byte of the file that was sent.
    pub(crate) from: usize,
    /// Bytes of the body that were given to the system.
    pub(crate) sent: usize,
    /// Whether a stalled client went before the server did.
    pub(crate) left: bool,
}

/// A file on the hub.
#[derive(Clone)]
pub(crate) struct Blob {
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) etag: String,
}

/// What the hub's description of the repository says about a file's length and digest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Describes {
    All,
    /// As some mirrors.
    Nothing,
}

/// The two servers. They end with the test program.
pub(crate) struct Hub {
    shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
    pub(crate) store: SocketAddr,
    /// Hears of each stall, with the first byte of the file that was sent, and how many.
    pub(crate) stalls: Receiver<(usize, usize)>,
}

struct Shared {
    store: SocketAddr,
    blob: Mutex<Blob>,
    scripts: Mutex<HashMap<At, VecDeque<Act>>>,
    seen: Mutex<Vec<Seen>>,
    describes: Mutex<Describes>,
    /// Whether the redirect names the digest, as the hub does.
    linked: Mutex<bool>,
    stalls: SyncSender<(usize, usize)>,
}

impl Hub {
    /// A hub with one file, `owner/name/model.gguf`, which it redirects to the other server.
    pub(crate) fn start(bytes: Vec<u8>) -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let store = TcpListener::bind("127.0.0.1:0").unwrap();
        let (stalls, stalled) = sync_channel(64);
        let shared = Arc::new(Shared {
            store: store.local_addr().unwrap(),
            blob: Mutex::new(Blob::of(bytes)),
            scripts: Mutex::default(),
            seen: Mutex::default(),
            describes: Mutex::new(Describes::All),
            linked: Mutex::new(false),
            stalls,
        });
        let this = Self {
            address: hub.local_addr().unwrap(),
            store: shared.store,
            shared: Arc::clone(&shared),
            stalls: stalled,
        };
        for (listener, is_hub) in [(hub, true), (store, false)] {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || shared.serve(stream, is_hub));
                }
            });
        }
        this
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests there are answered like this, one after the other.
    pub(crate) fn script(&self, at: At, acts: impl IntoIterator<Item = Act>) {
        let mut scripts = self.shared.scripts.lock().unwrap();
        scripts.entry(at).or_default().extend(acts);
    }

    /// All requests from now on are answered honestly.
    pub(crate) fn forget_scripts(&self) {
        self.shared.scripts.lock().unwrap().clear();
    }

    /// Whether something was asked there that is not forgotten.
    pub(crate) fn was_asked(&self, at: At) -> bool {
        self.shared
            .seen
            .lock()
            .unwrap()
            .iter()
            .any(|seen| seen.at == at)
    }

    /// Another file from now on.
    pub(crate) fn change(&self, blob: Blob) {
        *self.shared.blob.lock().unwrap() = blob;
    }

    pub(crate) fn blob(&self) -> Blob {
        self.shared.blob.lock().unwrap().clone()
    }

    pub(crate) fn describe(&self, describes: Describes, linked: bool) {
        *self.shared.describes.lock().unwrap() = describes;
        *self.shared.linked.lock().unwrap() = linked;
    }

    /// What was asked, and forgets it.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }

    /// What was asked of one of them.
    pub(crate) fn seen_at(&self, at: At) -> Vec<Seen> {
        self.seen()
            .into_iter()
            .filter(|seen| seen.at == at)
            .collect()
    }
}

impl Blob {
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self {
            etag: format!("\"{}\"", &digest_of(&bytes).to_string()[..16]),
            bytes: Arc::new(bytes),
        }
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream, is_hub: bool) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let Some((target, headers)) = read_head(&mut stream) else {
            return;
        };
        let at = match (is_hub, target.starts_with("/api/")) {
            (true, true) => At::Api,
            (true, false) => At::Hub,
            (false, _) => At::Store,
        };
        let script = self
            .scripts
            .lock()
            .unwrap()
            .get_mut(&at)
            .and_then(VecDeque::pop_front);
        let act = script.unwrap_or_else(|| self.honest(at, &target));
        let seen = Seen {
            at,
            target,
            headers,
            status: 0,
            from: 0,
            sent: 0,
            left: false,
        };
        self.answer(&mut stream, &act, seen);
    }

    /// What a hub answers that has no script.
    fn honest(&self, at: At, target: &str) -> Act {
        let blob = self.blob.lock().unwrap().clone();
        let digest = digest_of(&blob.bytes);
        match at {
            At::Store => Act::default(),
            At::Api => Act::of(
                200,
                &match *self.describes.lock().unwrap() {
                    _ if !target.ends_with("?blobs=true") => "{}".to_owned(),
                    Describes::Nothing => {
                        format!(r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"model.gguf"}}]}}"#)
                    }
                    Describes::All => format!(
                        r#"{{"id":"owner/name","sha":"{COMMIT}","siblings":[{{"rfilename":"README.md","size":7}},{{"rfilename":"model.gguf",
                       "size":{length},"lfs":{{"sha256":"{digest}","size":{length},"pointerSize":134}}}}]}}"#,
                        length = blob.bytes.len()
                    ),
                },
            ),
            At::Hub => {
                let place = format!("http://{}/blobs/1?{SIGNATURE}", self.store);
                let act = Act::of(302, "moved").with("Location", place);
                if *self.linked.lock().unwrap() {
                    act.with("X-Linked-ETag", format!("\"{digest}\""))
                        .with("X-Linked-Size", blob.bytes.len().to_string())
                } else {
                    act
                }
            }
        }
    }

    fn answer(&self, stream: &mut TcpStream, act: &Act, mut seen: Seen) {
        let blob = self.blob.lock().unwrap().clone();
        let (head, mut body) = if act.status.is_some() || act.body.is_some() {
            plain(act)
        } else {
            file(act, &blob, &mut seen)
        };
        seen.status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap();
        let from = seen.from;
        if let Some(byte) = act.flip.and_then(|at| body.get_mut(at.checked_sub(from)?)) {
            *byte ^= 0x55;
        }
        let until = act.until.map(|until| until.saturating_sub(from));
        let end = act.cut.or(act.stall).or(until).unwrap_or(body.len());
        let end = end.min(body.len());
        // Noted before the client can have it all, so that it is there when the client has.
        seen.sent = end;
        let place = {
            let mut all = self.seen.lock().unwrap();
            all.push(seen);
            all.len() - 1
        };
        if act.mute {
            return;
        }
        if act.hold_head {
            // Until the client goes.
            let _ = stream.read(&mut [0]);
            return;
        }
        let mut sent = stream.write_all(head.as_bytes());
        if act.chunked {
            for part in body[..end].chunks(10_000) {
                sent = sent.and_then(|()| write!(stream, "{:x}\r\n", part.len()));
                sent = sent
                    .and_then(|()| stream.write_all(part))
                    .and_then(|()| stream.write_all(b"\r\n"));
            }
            if end == body.len() {
                sent = sent.and_then(|()| stream.write_all(b"0\r\n\r\n"));
            }
        } else {
            sent = sent.and_then(|()| stream.write_all(&body[..end]));
        }
        if act.reset {
            set_socket_linger(&*stream, Some(Duration::ZERO)).unwrap();
        }
        if (act.stall.is_some() || act.hold) && sent.is_ok() {
            // A test that does not look at stalls does not wait for us either.
            let _ = self.stalls.try_send((from, end));
            let left = !matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
            if let Some(seen) = self.seen.lock().unwrap().get_mut(place) {
                seen.left = left;
            }
        }
    }
}

impl Act {
    /// A status and a text.
    pub(crate) fn of(status: u16, body: &str) -> Self {
        Self {
            status: Some(status),
            body: Some(body.as_bytes().to_vec()),
            ..Self::default()
        }
    }

    pub(crate) fn cut(at: usize) -> Self {
        Self {
            cut: Some(at),
            ..Self::default()
        }
    }

    pub(crate) fn stall(at: usize) -> Self {
        Self {
            stall: Some(at),
            ..Self::default()
        }
    }

    pub(crate) fn stalled(mut self, at: usize) -> Self {
        self.stall = Some(at);
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// Head and body of an answer that is not the file.
fn plain(act: &Act) -> (String, Vec<u8>) {
    let body = act.body.clone().unwrap_or_default();
    let mut head = format!("HTTP/1.1 {} X\r\n", act.status.unwrap_or(200));
    finish_head(&mut head, act, body.len());
    (head, body)
}

/// Head and body of the file, or the part that was asked for (RFC 9110, 14).
fn file(act: &Act, blob: &Blob, seen: &mut Seen) -> (String, Vec<u8>) {
    let etag = act.etag.clone().unwrap_or_else(|| blob.etag.clone());
    let total = blob.bytes.len();
    let from = seen
        .headers
        .get("range")
        .filter(|_| !act.ignore_range)
        .and_then(|range| {
            let from = range.strip_prefix("bytes=")?.strip_suffix('-')?;
            from.parse::<usize>().ok()
        });
    let same = seen
        .headers
        .get("if-range")
        .is_none_or(|asked| *asked == etag && !etag.starts_with('W'));
    let from = from.filter(|_| same);
    let lied = |number: usize, lie: i64| {
        number
            .checked_add_signed(isize::try_from(lie).unwrap())
            .unwrap()
    };
    let mut head = match from {
        Some(from) if from >= total => {
            let mut head = format!(
                "HTTP/1.1 416 X\r\nContent-Range: bytes */{}\r\n",
                lied(total, act.total_lie)
            );
            finish_head(&mut head, act, 0);
            return (head, Vec::new());
        }
        Some(from) => format!(
            "HTTP/1.1 206 X\r\nContent-Range: bytes {}-{}/{}\r\n",
            lied(from, act.start_lie),
            total - 1,
            lied(total, act.total_lie)
        ),
        None => "HTTP/1.1 200 OK\r\n".into(),
    };
    if !etag.is_empty() {
        let _ = write!(head, "ETag: {etag}\r\n");
    }
    seen.from = from.unwrap_or(0);
    let mut body = blob.bytes[seen.from..].to_vec();
    body.extend(&act.extra);
    finish_head(&mut head, act, body.len());
    (head, body)
}

fn finish_head(head: &mut String, act: &Act, length: usize) {
    for (name, value) in &act.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    if act.chunked {
        *head += "Transfer-Encoding: chunked\r\n";
    } else if !act.unstated {
        let length = i64::try_from(length).unwrap() + act.length_lie;
        let _ = write!(head, "Content-Length: {length}\r\n");
    }
    *head += "Connection: close\r\n\r\n";
}

/// Target and headers of a request.
fn read_head(stream: &mut TcpStream) -> Option<(String, HashMap<String, String>)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 16 << 10 || stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    let fields = lines.filter_map(|line| line.split_once(": "));
    let headers = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    Some((target, headers.collect()))
}
