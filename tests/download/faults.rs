//! 200 random cuts, corruptions and kills: no wrong file is accepted, every download ends whole, and little is fetched twice.
//!
//! Kills hit the real binary. Half of them wait until it has read all that was sent, which it shows by the pieces that it wrote: then at
//! most one piece may be lost. The other half hit at once, and may lose what lay in the sockets too.

use super::hub::{Act, At, Hub, Seen};
use super::model::{NAME, Place, Random, gguf};
use super::program::{Running, pull};
use pocket_llm::models::download::PIECE_BYTES;
use pocket_llm::models::store::with_end;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

const FAULTS: usize = 200;
const SEED: u64 = 20_261_124;

/// A program that does not get on ends the test.
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Cut,
    Reset,
    /// A wrong byte in an answer that is whole otherwise, or cut later.
    Corruption {
        cut: bool,
    },
    DrainedKill,
    Kill,
}

/// What was counted. Bytes that are fetched again stand under what made it necessary.
#[derive(Debug, Default)]
struct Figures {
    downloads: usize,
    cuts: usize,
    resets: usize,
    corruptions: usize,
    drained_kills: usize,
    kills: usize,
    file_bytes: usize,
    sent_bytes: usize,
    again_after_cuts: usize,
    again_after_resets: usize,
    again_after_drained_kills: usize,
    most_after_a_drained_kill: usize,
    again_after_kills: usize,
    most_after_a_kill: usize,
    again_after_corruptions: usize,
    files_begun_anew: usize,
    told_as_wrong: usize,
}

#[test]
fn two_hundred_faults_and_no_wrong_file() {
    let mut random = Random(SEED);
    let mut figures = Figures::default();
    let mut left = FAULTS;
    while left > 0 {
        let count = (1 + random.below(6)).min(left);
        left -= count;
        let plan: Vec<Fault> = (0..count).map(|_| any_fault(&mut random)).collect();
        Download::new(&mut random, &plan).run(&mut figures);
    }
    eprintln!("{figures:#?}");
    let struck =
        figures.cuts + figures.resets + figures.corruptions + figures.drained_kills + figures.kills;
    assert_eq!(struck, FAULTS);
    assert_eq!(figures.again_after_cuts, 0);
    assert!(figures.most_after_a_drained_kill < PIECE_BYTES);
    assert!(figures.again_after_corruptions <= figures.corruptions * 3 * (1 << 20));
}

/// A system that lost its power may have kept a file's length and not its bytes. Only those that were synced are gone on with, and
/// the file is not fetched anew.
#[test]
fn after_a_restart_of_the_system_what_was_synced_is_continued() {
    const SYNCED: usize = 32 << 20;
    let length = SYNCED + (3 << 20);
    for restarted in [false, true] {
        let hub = Hub::start(gguf(7, length));
        let cut = length - 1000;
        hub.script(At::Store, [Act::cut(cut)]);
        let mut place = Place::new(&hub);
        place.puller.settings.attempts = 1;
        place.pull().unwrap_err();
        assert_eq!(place.partial_length(), cut);
        let record_path = with_end(&place.partial(), ".json");
        let record = std::fs::read(&record_path).unwrap();
        let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        assert_eq!(record["synced"], SYNCED);
        assert!(record["boot"].is_string(), "{record}");
        if restarted {
            record["boot"] = "an earlier one".into();
            std::fs::write(&record_path, record.to_string()).unwrap();
            let partial = OpenOptions::new()
                .write(true)
                .open(place.partial())
                .unwrap();
            partial
                .write_all_at(&vec![0; cut - SYNCED], SYNCED as u64)
                .unwrap();
        }
        hub.seen();
        place.pull().unwrap();
        assert!(place.bytes().unwrap() == *hub.blob().bytes);
        let asked = hub.seen_at(At::Store);
        let [only] = asked.as_slice() else {
            panic!("{asked:?}")
        };
        let from = if restarted { SYNCED } else { cut };
        assert_eq!(only.headers["range"], format!("bytes={from}-"));
        place.assert_tidy();
    }
}

fn any_fault(random: &mut Random) -> Fault {
    match random.below(8) {
        0 | 1 => Fault::Cut,
        2 => Fault::Reset,
        3 => Fault::Corruption { cut: false },
        4 => Fault::Corruption { cut: true },
        5 | 6 => Fault::DrainedKill,
        _ => Fault::Kill,
    }
}

struct Download {
    hub: Hub,
    place: Place,
    length: usize,
    plan: Vec<Fault>,
    /// Where each kill's next request has to begin: what was on the disk.
    begins: Vec<usize>,
}

impl Download {
    /// A hub that strikes one request after the other, each somewhere behind the last.
    fn new(random: &mut Random, plan: &[Fault]) -> Self {
        let length = (1 << 20) + random.below(2 << 20);
        let hub = Hub::start(gguf(random.next(), length));
        let mut here = 0;
        for fault in plan {
            let at = here + random.below(length - here);
            let act = match fault {
                Fault::Corruption { cut } => Act {
                    flip: Some(at),
                    until: cut.then(|| at + 1 + random.below(length - at)),
                    ..Act::default()
                },
                _ => Act {
                    until: Some(at),
                    reset: *fault == Fault::Reset,
                    hold: matches!(fault, Fault::DrainedKill | Fault::Kill),
                    ..Act::default()
                },
            };
            here = act.until.filter(|until| *until < length).unwrap_or(0);
            hub.script(At::Store, [act]);
        }
        Self {
            place: Place::new(&hub),
            hub,
            length,
            plan: plan.to_vec(),
            begins: Vec::new(),
        }
    }

    fn run(mut self, figures: &mut Figures) {
        let mut kills = self.plan.clone();
        kills.retain(|fault| matches!(fault, Fault::DrainedKill | Fault::Kill));
        for kill in kills {
            self.until_killed(kill, figures);
        }
        // Two wrong files in one run are an error; the next run gets what is left.
        while let Err(error) = self.place.pull() {
            assert!(
                error.to_string().contains("another file than was promised"),
                "{SEED}: {error}"
            );
            self.assert_nothing_wrong();
            figures.told_as_wrong += 1;
        }
        assert!(self.place.target().exists());
        self.assert_nothing_wrong();
        self.place.assert_tidy();
        self.count(figures);
    }

    /// Runs the binary until the hub holds an answer back, and kills it then.
    fn until_killed(&mut self, kill: Fault, figures: &mut Figures) {
        let mut running = self.start();
        let (from, sent) = loop {
            match self.hub.stalls.recv_timeout(Duration::from_millis(5)) {
                Ok(stall) => break stall,
                Err(_) if !running.has_ended() => {}
                Err(_) => {
                    let error = String::from_utf8(running.output().stderr).unwrap();
                    assert!(
                        error.contains("another file than was promised"),
                        "{SEED}: {error}"
                    );
                    figures.told_as_wrong += 1;
                    running = self.start();
                }
            }
        };
        let whole_pieces = from + sent / PIECE_BYTES * PIECE_BYTES;
        let mut waited = Duration::ZERO;
        while kill == Fault::DrainedKill && self.place.partial_length() < whole_pieces {
            assert!(waited < PATIENCE, "{SEED}: it does not read what is sent");
            thread::sleep(Duration::from_millis(1));
            waited += Duration::from_millis(1);
        }
        running.kill();
        self.begins.push(self.place.partial_length());
        self.assert_nothing_wrong();
    }

    fn start(&self) -> Running {
        Running::start(pull(&self.hub, self.place.folder.path(), &[NAME]))
    }

    fn assert_nothing_wrong(&self) {
        if let Some(bytes) = self.place.bytes() {
            assert!(
                bytes == *self.hub.blob().bytes,
                "{SEED}: a wrong file was accepted"
            );
        }
    }

    /// Compares where each request began with where the one before it ended.
    fn count(&self, figures: &mut Figures) {
        let seen = self.hub.seen_at(At::Store);
        figures.downloads += 1;
        figures.file_bytes += self.length;
        figures.sent_bytes += seen.iter().map(|seen| seen.sent).sum::<usize>();
        let mut begins = self.begins.iter();
        assert!(seen.len() > self.plan.len());
        for (at, fault) in self.plan.iter().enumerate() {
            let (ended, next) = (seen[at].from + seen[at].sent, seen[at + 1].from);
            let again = ended
                .checked_sub(next)
                .unwrap_or_else(|| panic!("{SEED}: a gap: {seen:?}"));
            if matches!(fault, Fault::DrainedKill | Fault::Kill) {
                assert_eq!(
                    begins.next(),
                    Some(&next),
                    "{SEED}: not continued where it was"
                );
            }
            figures.add(*fault, ended == self.length, again);
        }
        // Behind the faults: the rest, and perhaps the whole once more for a wrong byte in what had come.
        self.count_rest(&seen[self.plan.len()..], figures);
    }

    fn count_rest(&self, rest: &[Seen], figures: &mut Figures) {
        assert!(rest.len() <= 2, "{SEED}: {rest:?}");
        for seen in rest {
            assert_eq!(seen.from + seen.sent, self.length);
        }
        if let [_, anew] = rest {
            assert_eq!(anew.from, 0);
            figures.files_begun_anew += 1;
            figures.again_after_corruptions += self.length;
        }
    }
}

impl Figures {
    fn add(&mut self, fault: Fault, was_whole: bool, again: usize) {
        match fault {
            Fault::Corruption { .. } => {
                self.corruptions += 1;
                self.again_after_corruptions += again;
                self.files_begun_anew += usize::from(again > 0);
                // Only a whole file shows that it is wrong.
                assert!(was_whole || again == 0);
            }
            Fault::Cut => {
                self.cuts += 1;
                self.again_after_cuts += again;
            }
            Fault::Reset => {
                self.resets += 1;
                self.again_after_resets += again;
            }
            Fault::DrainedKill => {
                self.drained_kills += 1;
                self.again_after_drained_kills += again;
                self.most_after_a_drained_kill = self.most_after_a_drained_kill.max(again);
            }
            Fault::Kill => {
                self.kills += 1;
                self.again_after_kills += again;
                self.most_after_a_kill = self.most_after_a_kill.max(again);
            }
        }
    }
}

#[test]
fn kills_at_any_moment_leave_nothing_wrong() {
    const KILLS: usize = 60;
    let mut random = Random(SEED + 1);
    let length = 2 << 20;
    let hub = Hub::start(gguf(9, length));
    let (mut in_time, mut whole) = (0, 0);
    let mut place = Place::new(&hub);
    for _ in 0..KILLS {
        let mut running = Running::start(pull(&hub, place.folder.path(), &[NAME]));
        // No synchronisation: any moment will do, from its start to behind its end.
        thread::sleep(Duration::from_micros(random.next() % 60_000));
        in_time += usize::from(!running.has_ended());
        running.kill();
        if let Some(bytes) = place.bytes() {
            assert!(bytes == *hub.blob().bytes, "a wrong file was accepted");
            // Whatever is missing beside it, it is found to be right.
            place.pull().unwrap();
            place.assert_tidy();
            whole += 1;
            place = Place::new(&hub);
        }
    }
    place.pull().unwrap();
    assert!(place.bytes().unwrap() == *hub.blob().bytes);
    eprintln!("{KILLS} kills, {in_time} before the end, {whole} files whole at that moment");
    assert!(in_time > 0);
}
