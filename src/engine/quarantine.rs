//! Which requests are suspected, or known, to end the worker: plain data, and the rule that makes one of the other.
//!
//! A crash says that one of the requests of its step may have caused it, not which. So each of them is a **suspect**: it runs
//! alone, and who ends without a crash, or gets well beyond the place of the crash, is cleared. One that has crashed the worker [`DEATHS_ALONE`] times with nobody beside it
//! is **refused**, now and when it is asked again. What is remembered is a fingerprint, never a text, and it goes with the engine.

use super::{EngineError, Question, Sampling, Work};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

/// A request that has crashed the worker as often, alone, is refused. Once could be chance.
const DEATHS_ALONE: u32 = 2;
/// Requests that are remembered; the one that was not asked for longest is forgotten first.
const MOST_REMEMBERED: usize = 256;
/// A suspect that has said as many bytes more than twice what it had said when the worker crashed has left that place behind. So
/// far, because the same request may say something else.
const BEYOND: usize = 64;

/// What a request computes, as a hash: prompt, form, tools, limits and sampling. Who asks, how long they wait, and the seed (which is
/// drawn anew where a request names none) make no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// With a salt that nobody else knows: from a log, nobody can find out whether a text was asked.
    fn of(salt: u64, work: &Work) -> Self {
        let mut work = work.clone();
        match &mut work {
            Work::Generate(request) => {
                request.client.clear();
                request.deadline_ms = None;
                request.sampling.seed = 0;
            }
            Work::Ask(question) => {
                if let Question::Embed {
                    client,
                    deadline_ms,
                    ..
                } = &mut **question
                {
                    client.clear();
                    *deadline_ms = None;
                }
            }
        }
        let mut hash = Hash(Sha256::new_with_prefix(salt.to_le_bytes()));
        // What can't be written as JSON never reached a worker; its beginning tells it apart well enough.
        let _ = serde_json::to_writer(&mut hash, &work);
        Self(hash.0.finalize().into())
    }
}

/// As the log and clients see it: enough to tell requests apart.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

struct Hash(Sha256);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The suspects and the refused.
pub(super) struct Quarantine {
    salt: u64,
    entries: BTreeMap<Fingerprint, Entry>,
    /// Counts uses, so that entries have an age.
    clock: u64,
}

struct Entry {
    deaths_alone: u32,
    /// Bytes that it had said at most when the worker crashed.
    said: usize,
    /// Of the last crash.
    reason: String,
    used: u64,
}

impl Entry {
    fn is_refused(&self) -> bool {
        self.deaths_alone >= DEATHS_ALONE
    }
}

impl Default for Quarantine {
    fn default() -> Self {
        Self {
            salt: Sampling::random_seed(),
            entries: BTreeMap::new(),
            clock: 0,
        }
    }
}

impl Quarantine {
    pub(super) fn fingerprint(&self, work: &Work) -> Fingerprint {
        Fingerprint::of(self.salt, work)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the request must run alone.
    pub(super) fn suspects(&self, fingerprint: &Fingerprint) -> bool {
        let entry = self.entries.get(fingerprint);
        entry.is_some_and(|entry| !entry.is_refused())
    }

    /// Why the request is refused, if it is.
    pub(super) fn refusal(&mut self, fingerprint: &Fingerprint) -> Option<EngineError> {
        self.clock += 1;
        let entry = self.entries.get_mut(fingerprint)?;
        entry.used = self.clock;
        entry.is_refused().then(|| {
            EngineError::Refused(format!(
                "this very request has ended the model's process {} times with no other beside it (the last time {}), and is not tried \
                 again: change it (the server's log calls it {fingerprint})",
                entry.deaths_alone, entry.reason
            ))
        })
    }

    /// The request was in the step in which the worker crashed, with nobody beside it or in company, and had said so many bytes.
    pub(super) fn crashed(
        &mut self,
        fingerprint: Fingerprint,
        (alone, said): (bool, usize),
        reason: &str,
    ) {
        self.clock += 1;
        if self.entries.len() >= MOST_REMEMBERED && !self.entries.contains_key(&fingerprint) {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let oldest = oldest.map(|(fingerprint, _)| *fingerprint);
            self.entries.retain(|entry, _| Some(*entry) != oldest);
        }
        let entry = self.entries.entry(fingerprint).or_insert(Entry {
            deaths_alone: 0,
            said: 0,
            reason: String::new(),
            used: 0,
        });
        entry.deaths_alone += u32::from(alone);
        entry.said = entry.said.max(said);
        reason.clone_into(&mut entry.reason);
        entry.used = self.clock;
    }

    /// The request runs alone and has said so many bytes.
    pub(super) fn says(&mut self, fingerprint: &Fingerprint, said: usize) {
        let entry = self.entries.get(fingerprint);
        if entry.is_some_and(|entry| !entry.is_refused() && said > 2 * entry.said + BEYOND) {
            self.clear(fingerprint);
        }
    }

    /// The request has run alone to its end.
    pub(super) fn clear(&mut self, fingerprint: &Fingerprint) {
        self.entries.remove(fingerprint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Prompt, Request};

    fn request(text: &str) -> Request {
        Request::new("client", Prompt::Text(text.into()))
    }

    fn fingerprint(request: Request) -> Fingerprint {
        Fingerprint::of(1, &Work::Generate(Box::new(request)))
    }

    #[test]
    fn a_fingerprint_is_of_what_is_computed() {
        let same = fingerprint(request("a"));
        let mut asked = request("a");
        asked.client = "another".into();
        asked.deadline_ms = Some(5);
        asked.sampling.seed = 3;
        assert_eq!(fingerprint(asked), same);
        let others: [fn(&mut Request); 5] = [
            |request| request.prompt = Prompt::Text("b".into()),
            |request| request.max_tokens = Some(5),
            |request| request.stop = vec!["x".into()],
            |request| request.sampling.temperature = 1.0,
            |request| request.format = Some(crate::engine::Format::JsonObject),
        ];
        for change in others {
            let mut other = request("a");
            change(&mut other);
            assert_ne!(fingerprint(other), same);
        }
        let shown = same.to_string();
        assert!(shown.len() == 16 && shown.chars().all(|c| c.is_ascii_hexdigit()));
    }

    #[test]
    fn two_crashes_alone_are_a_refusal_and_an_end_clears() {
        let mut quarantine = Quarantine::default();
        let [bad, good] = ["bad", "good"].map(|text| fingerprint(request(text)));
        for fingerprint in [bad, good] {
            quarantine.crashed(fingerprint, (false, 0), "it crashed with signal 6");
        }
        assert!(quarantine.suspects(&bad) && quarantine.suspects(&good));
        quarantine.clear(&good);
        assert!(!quarantine.suspects(&good));
        quarantine.crashed(bad, (true, 0), "signal 6");
        assert!(quarantine.suspects(&bad) && quarantine.refusal(&bad).is_none());
        quarantine.crashed(bad, (true, 0), "it crashed with signal 11");
        assert!(!quarantine.suspects(&bad));
        let Some(EngineError::Refused(text)) = quarantine.refusal(&bad) else {
            panic!("not refused")
        };
        assert!(
            text.contains("2 times")
                && text.contains("signal 11")
                && text.contains(&bad.to_string()),
            "{text}"
        );
        assert!(quarantine.refusal(&good).is_none());
    }

    #[test]
    fn who_gets_far_beyond_the_crash_is_cleared() {
        let mut quarantine = Quarantine::default();
        let suspect = fingerprint(request("a"));
        quarantine.crashed(suspect, (true, 100), "");
        quarantine.crashed(suspect, (false, 10), "");
        for (said, suspected) in [(100, true), (264, true), (265, false)] {
            quarantine.says(&suspect, said);
            assert_eq!(quarantine.suspects(&suspect), suspected, "{said}");
        }
        // A verdict stays.
        quarantine.crashed(suspect, (true, 0), "");
        quarantine.crashed(suspect, (true, 0), "");
        quarantine.says(&suspect, 1000);
        assert!(quarantine.refusal(&suspect).is_some());
    }

    #[test]
    fn the_one_not_asked_for_longest_is_forgotten() {
        let mut quarantine = Quarantine::default();
        let all: Vec<_> = (0..=MOST_REMEMBERED)
            .map(|n| fingerprint(request(&n.to_string())))
            .collect();
        for one in &all[..MOST_REMEMBERED] {
            quarantine.crashed(*one, (true, 0), "");
            quarantine.crashed(*one, (true, 0), "");
        }
        // The first is asked again, so the second is the oldest.
        assert!(quarantine.refusal(&all[0]).is_some());
        quarantine.crashed(all[MOST_REMEMBERED], (true, 0), "");
        assert_eq!(quarantine.entries.len(), MOST_REMEMBERED);
        assert!(quarantine.refusal(&all[0]).is_some());
        assert!(quarantine.refusal(&all[1]).is_none());
        assert!(quarantine.refusal(&all[2]).is_some());
    }
}
