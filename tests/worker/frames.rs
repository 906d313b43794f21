//! Damaged frames, some hundreds of kinds by a seed, both ways: an error and a restart, never a panic, an endless wait, or one
//! request's text in another's answer.

use crate::scripted::{ScriptedBackend, Told, options, read, request};
use crate::{PANICS, saying};
use pocket_llm::engine::wire::{self, BUILD, FromWorker, ToWorker};
use pocket_llm::engine::{EngineError, EngineHandle, Event, WorkerStats};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Words of two answers that share no letter.
const WORDS: [&str; 2] = ["alfalfa", "zoom"];

/// The same numbers for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// One fault somewhere in frames.
fn damaged(random: &mut Random, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut frames = frames.to_vec();
    let which = random.below(frames.len());
    match random.below(9) {
        0 => frames.insert(which, random.bytes(64)),
        1 => drop(frames.remove(which)),
        2 => frames.push(frames[which].clone()),
        3 => frames.reverse(),
        // The promise of another length.
        4 => {
            let length = u32::try_from(random.below(1 << 32)).unwrap_or(u32::MAX);
            frames[which][..4].copy_from_slice(&length.to_le_bytes());
        }
        5 => {
            let length = frames[which][0] ^ 1 << random.below(8);
            frames[which][0] = length;
        }
        // One bit of the text.
        6 => {
            let at = 4 + random.below(frames[which].len() - 4);
            frames[which][at] ^= 1 << random.below(8);
        }
        // A frame of the right length that says nothing.
        7 => {
            let length = frames[which].len();
            for byte in &mut frames[which][4..length] {
                *byte = random.next().to_le_bytes()[0];
            }
        }
        _ => {
            let whole = frames.concat();
            let cut = random.below(whole.len());
            return whole[..cut].to_vec();
        }
    }
    frames.concat()
}

/// What a worker says that loads and answers two requests.
fn talk() -> Vec<Vec<u8>> {
    let step = |events| FromWorker::Step {
        events,
        stats: WorkerStats::default(),
    };
    let text = |id, text: &str| {
        let (text, thinking, logprobs) = (text.into(), false, Vec::new());
        let text = Event::Text {
            text,
            thinking,
            logprobs,
        };
        (id, text)
    };
    let accepted = |id| {
        let (prompt_tokens, position) = (1, 0);
        (
            id,
            Event::Accepted {
                prompt_tokens,
                position,
            },
        )
    };
    let started = |id| (id, Event::Started { cached_tokens: 0 });
    let build = BUILD.into();
    let frames = [
        FromWorker::Hello { build },
        FromWorker::Loading { progress: 0.5 },
        FromWorker::Loaded(Box::default()),
        step(vec![accepted(1), accepted(2), started(1), started(2)]),
        step(vec![text(1, WORDS[0]), text(2, WORDS[1])]),
        step(vec![text(2, WORDS[1]), text(1, WORDS[0])]),
    ];
    let encoded = frames.iter().map(|frame| wire::encode(frame).unwrap());
    encoded.collect()
}

fn ended_by_itself(told: &Told) -> bool {
    matches!(
        told.events.last(),
        Some(Event::Failed(
            EngineError::EngineDied(_)
                | EngineError::NotReady(_)
                | EngineError::Refused(_)
                | EngineError::Internal(_)
        ))
    )
}

pub(crate) async fn damaged_frames_of_a_worker_end_in_errors_and_mix_nothing_up() {
    let frames = talk();
    for seed in 0..300 {
        let bytes = damaged(&mut Random(seed), &frames);
        let engine = EngineHandle::start(saying(bytes)).unwrap();
        let asked = WORDS.map(|word| engine.submit(request(word)).unwrap());
        let [first, second] = asked;
        let told = [read(first).await, read(second).await];
        for (n, told) in told.iter().enumerate() {
            assert!(ended_by_itself(told), "seed {seed}: {told:?}");
            let other = WORDS[1 - n];
            let mixed = told.text.contains(&other[..3]) || told.text.contains(&other[1..4]);
            assert!(!mixed, "seed {seed}: {told:?}");
        }
        engine.shutdown().await;
    }
    assert_eq!(*PANICS.lock().unwrap(), [""; 0]);
}

/// What a front says to a worker that answers two requests.
fn orders() -> Vec<Vec<u8>> {
    let config = options(&Arc::default(), 2, 2).config;
    let build = BUILD.into();
    let submit = |id, text| ToWorker::Submit {
        id,
        work: pocket_llm::engine::Work::Generate(Box::new(request(text))),
    };
    let frames = [
        ToWorker::Load {
            build,
            config: Box::new(config),
        },
        submit(1, "say:alfalfa|"),
        submit(2, "say:zoom|"),
        ToWorker::Cancel { id: 1 },
        submit(3, "say:alfalfa|"),
    ];
    let encoded = frames.iter().map(|frame| wire::encode(frame).unwrap());
    encoded.collect()
}

/// Serves these bytes, and gives what the worker said until it ended.
async fn serve(bytes: Vec<u8>) -> Vec<FromWorker> {
    let (mut front, worker) = UnixStream::pair().unwrap();
    let served = tokio::task::spawn_blocking(move || {
        let script = Arc::default();
        pocket_llm::worker::serve(worker, &ScriptedBackend { script }, || {});
    });
    let said = tokio::task::spawn_blocking(move || {
        // The worker may hang up before it has heard everything.
        let _ = front.write_all(&bytes);
        let _ = front.shutdown(Shutdown::Write);
        let mut said = Vec::new();
        let _ = front.read_to_end(&mut said);
        said
    });
    served.await.unwrap();
    let said = said.await.unwrap();
    let mut rest = said.as_slice();
    let mut frames = Vec::new();
    // The last frame may be cut by the end of the socket.
    while let Ok(Some(frame)) = wire::read(&mut rest) {
        frames.push(frame);
    }
    frames
}

pub(crate) async fn damaged_frames_of_a_front_end_a_worker_and_mix_nothing_up() {
    let frames = orders();
    let (load, rest) = frames.split_first().unwrap();
    for seed in 0..300 {
        let random = &mut Random(seed);
        // The configuration is checked by the program that wrote it; its frame is only cut.
        let bytes = if random.below(8) == 0 {
            frames.concat()[..random.below(load.len())].to_vec()
        } else {
            [load.as_slice(), &damaged(random, rest)].concat()
        };
        let mut texts = [String::new(), String::new()];
        for frame in serve(bytes).await {
            let FromWorker::Step { events, .. } = frame else {
                continue;
            };
            for (id, event) in events {
                if let Event::Text { text, .. } = event {
                    texts[usize::from(id == 2)] += &text;
                }
            }
        }
        assert!(
            !texts[0].contains("zoo") && !texts[1].contains("alf"),
            "seed {seed}: {texts:?}"
        );
    }
    assert_eq!(*PANICS.lock().unwrap(), [""; 0]);
}

pub(crate) async fn any_bytes_are_a_frame_or_an_error() {
    for seed in 0..5_000 {
        let mut random = Random(seed);
        let mut bytes = random.bytes(200);
        if random.below(2) == 0 && bytes.len() > 4 {
            let length = u32::try_from(bytes.len() - 4).unwrap();
            bytes[..4].copy_from_slice(&length.to_le_bytes());
        }
        let blocking = wire::read::<FromWorker>(&mut bytes.as_slice());
        let other = wire::read_async::<FromWorker>(&mut bytes.as_slice()).await;
        let kind = |told: &std::io::Result<_>| told.as_ref().err().map(std::io::Error::kind);
        assert_eq!(kind(&blocking), kind(&other), "seed {seed}");
        assert!(
            blocking.is_err() || bytes.is_empty(),
            "seed {seed}: {blocking:?}"
        );
        let orders = wire::read::<ToWorker>(&mut bytes.as_slice());
        assert!(orders.is_err() || bytes.is_empty());
    }
}
