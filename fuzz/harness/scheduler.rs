//! Any series of arrivals, cancels and texts to embed, through the real loop over a scripted decoder: each request has exactly
//! one last event, or was cancelled; a step has no more rows than it may; and at the end no sequence is held.

use super::scripted::{ByteVocab, Script, ScriptedDecoder};
use pocket_llm::engine::wire::RequestId;
use pocket_llm::engine::{CacheScope, Event, Pooling, Sampling, Token};
use pocket_llm::worker::decoder::Draft;
use pocket_llm::worker::embedding::Texts;
use pocket_llm::worker::run::{Inbound, Report, Sizes, run};
use pocket_llm::worker::sampling::Sampler;
use pocket_llm::worker::sequence::Arrival;
use pocket_llm::worker::speculation::Costs;
use pocket_llm::worker::text::{TextStream, Think};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Tokens of a sequence.
const CONTEXT: u32 = 256;
/// Rows of a draft model's step.
const DRAFT_ROWS: u32 = 16;
/// Requests of a case at most.
const MOST_REQUESTS: usize = 48;
/// Answers of so many tokens end in any case.
const MOST_TOKENS: u32 = 24;

/// A request, as far as anybody outside knows.
#[derive(Default)]
struct Seen {
    cancelled: Option<Arc<AtomicBool>>,
    accepted: u32,
    started: u32,
    last: u32,
}

impl Seen {
    /// Whether nothing is owed: it has ended, or nobody reads it.
    fn is_over(&self) -> bool {
        let is_set = |flag: &Arc<AtomicBool>| flag.load(Ordering::Relaxed);
        self.last == 1 || self.cancelled.as_ref().is_some_and(is_set)
    }
}

/// Three bytes set the sizes; then three for each thing that happens.
pub(crate) fn check(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<3>() else {
        return;
    };
    let sizes = sizes(*head);
    let script = Arc::new(Script::default());
    // A draft model beside it, which is wrong in every other case.
    let drafting = Arc::new(Script::default());
    if head[1] & 64 == 64 {
        drafting.contradict();
    }
    if head[2] & 1 == 1 {
        script.forget_beyond(16);
        drafting.forget_beyond(8);
    }
    let ops: VecDeque<[u8; 3]> = rest.as_chunks::<3>().0.iter().copied().collect();
    // Each report brings two things at most, and each of them two messages.
    let (sender, inbox) = sync_channel(4 * MOST_REQUESTS + 16);
    let mut case = Case {
        ops,
        sender,
        seen: BTreeMap::new(),
        next: 1,
        is_idle: true,
        over: false,
    };
    case.feed();
    let mut decoder = ScriptedDecoder::new(&script);
    let mut model = ScriptedDecoder::new(&drafting);
    let draft = (head[2] & 8 == 8).then_some(Draft {
        decoder: &mut model,
        batch_size: DRAFT_ROWS,
        weight: 0.1,
    });
    let mut last = None;
    run(
        sizes,
        Arc::new(ByteVocab::new()),
        (&mut decoder, draft),
        &inbox,
        &mut |report| {
            let Report { events, stats, .. } = report;
            assert!(stats.running <= sizes.sequences, "{stats:?}");
            assert!(stats.kv_cells_used <= stats.kv_cells, "{stats:?}");
            assert!(stats.saved_bytes <= sizes.cache_bytes, "{stats:?}");
            for (id, event) in events {
                case.note(id, &event);
            }
            case.is_idle = stats.running == 0 && stats.queued == 0;
            last = Some(stats);
            case.feed();
            true
        },
    );
    case.judge();
    let Some(last) = last else {
        return assert!(case.seen.is_empty(), "nothing was reported");
    };
    assert_eq!((last.running, last.queued), (0, 0), "something is left");
    for (script, most) in [(script, sizes.batch_size), (drafting, DRAFT_ROWS)] {
        for rows in script.steps() {
            assert!(rows.len() <= most as usize, "{} rows", rows.len());
            assert!(rows.iter().all(|row| row.position < CONTEXT));
        }
    }
}

fn sizes(head: [u8; 3]) -> Sizes {
    let [sequences, rows, kind] = head;
    let sequences = u32::from(sequences % 4) + 1;
    Sizes {
        sequences,
        context_per_sequence: CONTEXT,
        batch_size: sequences.max(8) + u32::from(rows % 64),
        step_ms: 300,
        pooling: Pooling::Mean,
        cache_bytes: u64::from(kind >> 4) * 64,
        cache_scope: if kind & 2 == 2 {
            CacheScope::Client
        } else {
            CacheScope::Server
        },
        // With a draft model as if rows cost little, so that it is asked.
        costs: (kind & 8 == 8).then(Costs::little),
        draft_rows: u32::from(kind & 4) * 2,
        embedding_rest: Duration::MAX,
    }
}

struct Case {
    ops: VecDeque<[u8; 3]>,
    sender: SyncSender<Inbound>,
    seen: BTreeMap<RequestId, Seen>,
    next: RequestId,
    /// Whether the loop said so last.
    is_idle: bool,
    over: bool,
}

impl Case {
    fn send(&self, inbound: Inbound) {
        assert!(self.sender.try_send(inbound).is_ok(), "the inbox is full");
    }

    /// Sends what comes next: something that will be reported, or the end once nobody waits for anything.
    fn feed(&mut self) {
        while let Some([what, a, b]) = self.ops.pop_front() {
            match what % 4 {
                _ if self.seen.len() >= MOST_REQUESTS => {}
                0 => {
                    let ids: Vec<_> = self.seen.keys().copied().collect();
                    if let Some(id) = ids.get(usize::from(a) % ids.len().max(1)) {
                        self.cancel(*id);
                    }
                }
                1 if b.is_multiple_of(4) => {
                    self.embed(a, b);
                    return;
                }
                _ => {
                    self.arrive(what, a, b);
                    return;
                }
            }
        }
        let is_over = self.is_idle && self.seen.values().all(Seen::is_over);
        if is_over && !std::mem::replace(&mut self.over, true) {
            self.send(Inbound::Closed);
        }
    }

    fn cancel(&mut self, id: RequestId) {
        if let Some(flag) = self.seen.get(&id).and_then(|seen| seen.cancelled.as_ref())
            && !flag.swap(true, Ordering::Relaxed)
        {
            self.send(Inbound::Wake);
        }
    }

    fn enter(&mut self) -> (RequestId, Arc<AtomicBool>) {
        let id = self.next;
        self.next += 1;
        let flag = Arc::new(AtomicBool::new(false));
        let seen = self.seen.entry(id).or_default();
        seen.cancelled = Some(Arc::clone(&flag));
        (id, flag)
    }

    fn embed(&mut self, a: u8, b: u8) {
        let (id, flag) = self.enter();
        let texts = vec![vec![Token(b'e'.into()); usize::from(a % 40) + 1]; usize::from(b % 3) + 1];
        let client = format!("client {}", b % 3);
        let texts = Texts::new((id, client), texts, None, flag);
        self.send(Inbound::Embed(Box::new(texts)));
    }

    /// Prompts share beginnings of several lengths.
    fn arrive(&mut self, what: u8, a: u8, b: u8) {
        let (id, cancelled) = self.enter();
        let directive = if b & 1 == 1 { "loop" } else { "say" };
        let common = "the same words again and again. ".repeat(usize::from(a >> 5));
        let text = format!(
            "{}{directive}:{}|",
            common,
            "ab c".repeat(usize::from(b % 8) + 1)
        );
        let mut prompt: Vec<Token> = text.bytes().map(|byte| Token(byte.into())).collect();
        prompt.truncate((CONTEXT - MOST_TOKENS) as usize);
        let stop = (what & 32 == 32).then(|| "b c".to_owned());
        self.send(Inbound::Arrival(Box::new(Arrival {
            id,
            client: format!("client {}", a % 3),
            max_tokens: u32::from(a) % MOST_TOKENS + 1,
            sampler: Sampler::new(&Sampling::GREEDY, &prompt),
            constraint: None,
            text: TextStream::new(stop.as_slice(), Think::Off),
            calls: None,
            likelihoods: None,
            prompt,
            echo: None,
            ignore_eos: b & 2 == 2,
            reuse: what & 64 == 0,
            arrived: Instant::now(),
            deadline: (what & 0x90 == 0x90).then(Instant::now),
            cancelled,
        })));
    }

    fn note(&mut self, id: RequestId, event: &Event) {
        let seen = self.seen.get_mut(&id).expect("an event of nobody's");
        assert_eq!(seen.last, 0, "{event:?} after the last event of {id}");
        match event {
            Event::Accepted { .. } => seen.accepted += 1,
            Event::Started { .. } => seen.started += 1,
            event if event.is_last() => seen.last += 1,
            _ => assert_eq!(seen.started, 1, "{event:?} before the start of {id}"),
        }
        assert!(seen.accepted <= 1 && seen.started <= 1, "{id} twice");
    }

    fn judge(&self) {
        for (id, seen) in &self.seen {
            assert!(seen.is_over(), "{id} has no end");
        }
    }
}
