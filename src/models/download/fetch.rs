//! The loop of tries that ends with a whole file or with the reason why there is none.
//!
//! Each try continues where the last one stopped, if the server can prove that it still has the same file; otherwise it begins
//! anew. Tries are counted while they bring nothing new: a file of gigabytes over a bad line may need hundreds, a dead server
//! gets eight.

use super::client::{Answer, Client, Fault, Linked, Wanted};
use super::location::shown;
use super::partial::{Partial, Record};
use super::retry::backoff;
use super::{DownloadError, Fetched, Job, PIECE_BYTES, Phase, Progress, Settings};
use crate::models::digest::Digest;
use std::io::{self, Read};
use std::time::Duration;
use ureq::http::header;

/// What every GGUF file begins with.
const MAGIC: &[u8] = b"GGUF";

/// Pieces between two looks at the free space, for a file of unknown length: 16 MiB.
const PIECES_PER_LOOK: u64 = 64;

/// Fetches one file. The caller holds the target's lock.
pub fn fetch(
    job: &Job,
    settings: &Settings,
    progress: &Progress,
) -> Result<Fetched, DownloadError> {
    let client = Client::new(settings, job.reach, progress)?;
    let partial = Partial::open(job, progress)?;
    let mut fetch = Fetch {
        job,
        settings,
        progress,
        client,
        best: partial.length(),
        partial,
        fruitless: 0,
        wrong: 0,
        bad_ranges: 0,
        received: 0,
    };
    let sha256 = match fetch.run() {
        Ok(sha256) => sha256,
        Err(error) => {
            if fetch.partial.length() == 0 {
                // Nothing came: nothing stays. What can't be removed is found by `Store::clean`.
                let _ = fetch.partial.discard();
            }
            return Err(error);
        }
    };
    Ok(Fetched {
        bytes: fetch.partial.length(),
        sha256,
        etag: fetch.partial.record().etag.clone(),
        received: fetch.received,
        path: fetch.partial.finish()?,
    })
}

struct Fetch<'a> {
    job: &'a Job,
    settings: &'a Settings,
    progress: &'a Progress,
    client: Client,
    partial: Partial,
    /// The most bytes that were here at once, in steps of a piece. What was there before is no progress.
    best: u64,
    /// Tries since then.
    fruitless: u32,
    /// Whole files that were not the promised one.
    wrong: u32,
    /// Partial answers in a row that begin somewhere else.
    bad_ranges: u32,
    received: u64,
}

impl Fetch<'_> {
    /// Tries until the partial is whole and checked; its digest.
    fn run(&mut self) -> Result<Digest, DownloadError> {
        loop {
            self.progress.set_attempt(self.fruitless + 1);
            let fault = match self.attempt() {
                Ok(sha256) => return Ok(sha256),
                Err(fault) => fault,
            };
            self.progress.check()?;
            let pause = match fault {
                Fault::Final(error) => return Err(error),
                Fault::Again { why, after } => self.again(why, after)?,
                Fault::Wrong { expected, found } => self.once_more(expected, found)?,
            };
            self.progress.set_phase(Phase::Pausing);
            self.progress.pause(pause)?;
        }
    }

    /// Counts a try that brought less than the whole file; the pause before the next.
    fn again(&mut self, why: String, after: Option<Duration>) -> Result<Duration, DownloadError> {
        if self.partial.length() >= self.best + PIECE_BYTES as u64 {
            self.best = self.partial.length();
            self.fruitless = 0;
        }
        self.fruitless += 1;
        tracing::debug!(
            url = shown(&self.job.url),
            fruitless = self.fruitless,
            why,
            "a try ended"
        );
        if self.fruitless >= self.settings.attempts {
            return Err(DownloadError::GaveUp {
                attempts: self.fruitless,
                last: why,
            });
        }
        let own = backoff(
            self.settings.backoff_base,
            self.settings.backoff_cap,
            self.fruitless,
        );
        let asked = after.map(|after| after.min(self.settings.retry_after_cap));
        Ok(asked.map_or(own, |asked| asked.max(own)))
    }

    /// A file with other bytes than promised is fetched once more from its beginning, and only once.
    fn once_more(&mut self, expected: String, found: String) -> Result<Duration, DownloadError> {
        self.wrong += 1;
        if self.wrong > 1 {
            self.partial.discard()?;
            return Err(DownloadError::WrongContent {
                url: shown(&self.job.url),
                expected,
                found,
            });
        }
        tracing::warn!(
            url = shown(&self.job.url),
            expected,
            found,
            "not what was promised; fetching it once more"
        );
        self.partial.clear()?;
        self.best = 0;
        Ok(backoff(
            self.settings.backoff_base,
            self.settings.backoff_cap,
            1,
        ))
    }

    fn attempt(&mut self) -> Result<Digest, Fault> {
        self.progress.set_total(self.partial.record().bytes);
        self.progress.set_received(self.partial.length());
        let total = self.partial.record().bytes;
        if total.is_some_and(|total| self.partial.length() > total) {
            self.partial.clear()?;
        }
        if total != Some(self.partial.length()) {
            self.receive_rest()?;
        }
        self.check()
    }

    fn receive_rest(&mut self) -> Result<(), Fault> {
        self.progress.set_phase(Phase::Connecting);
        let wanted = self.wanted();
        let answer = self
            .client
            .get(&self.job.url, self.job.token.as_ref(), &wanted)?;
        self.check_linked(answer.linked.as_ref())?;
        match answer.status {
            200 => {
                let record = self.record_of(&answer)?;
                self.receive(answer, Some(record))
            }
            206 => {
                self.believe(&answer, wanted.from)?;
                self.receive(answer, None)
            }
            416 => self.out_of_range(&answer),
            _ => Err(answer.refusal(self.job.token.is_some())),
        }
    }

    /// Where to go on: parts of two answers are put together if a strong entity tag or a digest proves that they fit.
    fn wanted(&self) -> Wanted {
        let record = self.partial.record();
        let etag = record.strong_etag();
        if etag.is_none() && record.sha256.is_none() {
            return Wanted::default();
        }
        Wanted {
            from: self.partial.length(),
            if_etag: etag.map(Into::into),
        }
    }

    /// The hub names digest and length while it redirects. They fill in what nobody promised, and must fit what somebody did.
    fn check_linked(&self, linked: Option<&Linked>) -> Result<(), DownloadError> {
        let Some(linked) = linked else { return Ok(()) };
        if let Some(sha256) = self.job.sha256.filter(|sha256| *sha256 != linked.sha256) {
            return Err(DownloadError::HubDiffers {
                what: "sha256",
                hub: linked.sha256.to_string(),
                catalogue: sha256.to_string(),
            });
        }
        if let Some(bytes) = self.job.bytes.filter(|bytes| *bytes != linked.bytes) {
            return Err(DownloadError::HubDiffers {
                what: "bytes",
                hub: linked.bytes.to_string(),
                catalogue: bytes.to_string(),
            });
        }
        Ok(())
    }

    /// What a whole answer is the whole of. Nothing of the partial is given up for an answer that can't be the file: a
    /// hotel's log-in page has status 200 too.
    fn record_of(&self, answer: &Answer) -> Result<Record, Fault> {
        check_encoding(answer)?;
        let stated = answer.body.content_length();
        let mut record = Record::of(self.job);
        record.etag = answer.header(header::ETAG).map(Into::into);
        if let Some(linked) = &answer.linked {
            record.bytes = Some(linked.bytes);
            record.sha256 = Some(linked.sha256);
        }
        match (record.bytes, stated) {
            (Some(promised), Some(stated)) if promised != stated => {
                return Err(Fault::again(format!(
                    "the answer has {stated} bytes, the file {promised}"
                )));
            }
            (None, None) if !is_chunked(answer) => {
                return Err(Fault::again("the answer doesn't say where it ends"));
            }
            (promised, stated) => record.bytes = promised.or(stated),
        }
        Ok(record)
    }

    /// A partial answer is believed if it continues what is here, of the same file.
    fn believe(&mut self, answer: &Answer, from: u64) -> Result<(), Fault> {
        check_encoding(answer)?;
        if from == 0 {
            return Err(Fault::again("got a part where the whole was asked for"));
        }
        let range = answer.header(header::CONTENT_RANGE).and_then(content_range);
        let Some((_, total)) = range.filter(|(start, _)| *start == from) else {
            self.bad_ranges += 1;
            if self.bad_ranges > 1 {
                self.partial.clear()?;
            }
            let start = range.map_or("nowhere".into(), |(start, _)| start.to_string());
            return Err(Fault::again(format!(
                "asked for bytes from {from}, got bytes from {start}"
            )));
        };
        self.bad_ranges = 0;
        let record = self.partial.record();
        let etag = answer.header(header::ETAG);
        let other_total = record
            .bytes
            .zip(total)
            .is_some_and(|(known, now)| known != now);
        let other_etag = record
            .etag
            .as_deref()
            .is_some_and(|known| etag != Some(known));
        if other_total || other_etag {
            self.partial.clear()?;
            return Err(Fault::again("the file has changed on the server"));
        }
        let mut record = record.clone();
        record.bytes = record.bytes.or(total);
        self.partial.note(record)?;
        Ok(())
    }

    /// There is nothing after what we have: that may be the whole file of which nobody knew the length.
    fn out_of_range(&mut self, answer: &Answer) -> Result<(), Fault> {
        let total = answer
            .header(header::CONTENT_RANGE)
            .and_then(|value| value.strip_prefix("bytes */")?.parse::<u64>().ok());
        let mut record = self.partial.record().clone();
        if total == Some(self.partial.length()) && record.bytes.is_none() && total > Some(0) {
            record.bytes = total;
            self.partial.note(record)?;
            return Ok(());
        }
        self.partial.clear()?;
        Err(Fault::again("the file on the server ends before ours does"))
    }

    /// Writes a body piece by piece; with `anew` it is the whole file, which begins once its first bytes look right.
    fn receive(&mut self, answer: Answer, mut anew: Option<Record>) -> Result<(), Fault> {
        let kind = answer
            .header(header::CONTENT_TYPE)
            .unwrap_or("no type")
            .to_owned();
        let mut body = answer.body.into_reader();
        let mut piece = vec![0; PIECE_BYTES];
        self.progress.set_phase(Phase::Receiving);
        for count in 0_u64.. {
            let (length, end) = self.fill(&mut body, &mut piece);
            let bytes = &piece[..length];
            if let Some(record) = anew.take_if(|_| length > 0) {
                check_magic(bytes, &kind)?;
                self.partial.begin(record)?;
                self.progress.set_total(self.partial.record().bytes);
                self.progress.set_received(length as u64);
            }
            if count % PIECES_PER_LOOK == 0 {
                self.check_space()?;
            }
            let total = self.partial.record().bytes;
            let here = self.partial.length() + length as u64;
            if let Some(total) = total.filter(|total| here > *total) {
                return Err(Fault::Wrong {
                    expected: format!("{total} bytes"),
                    found: "more".into(),
                });
            }
            if length > 0 {
                self.partial.append(bytes)?;
            }
            self.progress.check()?;
            match end {
                End::NotYet => {}
                End::Cut(why) => return Err(Fault::again(why)),
                End::Whole if anew.is_some() => return Err(Fault::again("the answer is empty")),
                End::Whole => return self.ended(),
            }
        }
        Ok(())
    }

    fn ended(&mut self) -> Result<(), Fault> {
        let length = self.partial.length();
        let mut record = self.partial.record().clone();
        match record.bytes {
            Some(total) if length < total => Err(Fault::again(format!(
                "the answer ended {} bytes too early",
                total - length
            ))),
            Some(_) => Ok(()),
            None => {
                record.bytes = Some(length);
                self.partial.note(record)?;
                Ok(())
            }
        }
    }

    /// Reads until the piece is full. What came before an end is kept.
    fn fill(&mut self, body: &mut impl Read, piece: &mut [u8]) -> (usize, End) {
        let mut length = 0;
        while length < piece.len() {
            match body.read(&mut piece[length..]) {
                Ok(0) => return (length, End::Whole),
                Ok(read) => {
                    length += read;
                    self.received += read as u64;
                    self.progress.add_received(read as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (length, End::Cut(cut(error))),
            }
        }
        (length, End::NotYet)
    }

    fn check_space(&self) -> Result<(), DownloadError> {
        let length = self.partial.length();
        let missing = self
            .partial
            .record()
            .bytes
            .map_or(0, |total| total.saturating_sub(length));
        self.partial
            .check_space(missing, self.settings.reserve_bytes)
    }

    /// Whether the whole file is the promised one; its digest.
    fn check(&mut self) -> Result<Digest, Fault> {
        self.progress.set_phase(Phase::Checking);
        let found = self.partial.digest();
        let promised = self.partial.record().sha256;
        if let Some(expected) = promised.filter(|expected| *expected != found) {
            return Err(Fault::Wrong {
                expected: format!("sha256 {expected}"),
                found: format!("sha256 {found}"),
            });
        }
        match (self.settings.structure)(self.partial.path()) {
            Ok(()) => Ok(found),
            Err(why) if promised.is_none() => Err(Fault::Wrong {
                expected: "a GGUF file".into(),
                found: format!("one that is none ({why})"),
            }),
            Err(why) => {
                self.partial.discard()?;
                Err(Fault::Final(DownloadError::Unusable {
                    url: shown(&self.job.url),
                    why,
                }))
            }
        }
    }
}

/// How a read of a piece ended.
enum End {
    NotYet,
    Whole,
    Cut(String),
}

fn cut(error: io::Error) -> String {
    match ureq::Error::from(error) {
        ureq::Error::Timeout(_) => "the server fell silent".into(),
        ureq::Error::Io(error) => format!("the connection was cut ({error})"),
        _ => "the connection was cut".into(),
    }
}

/// Bytes are counted and hashed as they lie on the server, so an encoded answer is of no use.
fn check_encoding(answer: &Answer) -> Result<(), Fault> {
    match answer.header(header::CONTENT_ENCODING) {
        None | Some("" | "identity") => Ok(()),
        Some(_) => Err(Fault::again(
            "the server encoded the file although it was asked not to",
        )),
    }
}

fn is_chunked(answer: &Answer) -> bool {
    answer
        .header(header::TRANSFER_ENCODING)
        .is_some_and(|value| value.to_ascii_lowercase().contains("chunked"))
}

fn check_magic(bytes: &[u8], kind: &str) -> Result<(), Fault> {
    let length = bytes.len().min(MAGIC.len());
    if bytes[..length] == MAGIC[..length] {
        return Ok(());
    }
    let kind: String = kind.chars().take(60).collect();
    Err(Fault::again(format!(
        "the answer is no GGUF file but {kind}"
    )))
}

/// Start and total of `bytes 5-9/10` or `bytes 5-9/*`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (start.parse().ok()?, end.parse::<u64>().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (start <= end && total.is_none_or(|total| end < total)).then_some((start, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        for (value, expected) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 0-0/1", Some((0, Some(1)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 5-9", None),
            ("5-9/10", None),
            ("bytes=5-9/10", None),
            ("bytes 5-9/x", None),
            ("bytes -5-9/10", None),
            ("bytes 5-99999999999999999999/*", None),
        ] {
            assert_eq!(content_range(value), expected, "{value}");
        }
    }
}
