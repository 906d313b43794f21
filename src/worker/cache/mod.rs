//! Which sequence holds which tokens, where a new request continues best, and what is kept aside. Pure book-keeping; the
//! decoder moves the cells.
//!
//! A prompt's beginning needs no decoding where a sequence holds it already: one that is idle is taken over, from any other one the
//! cells are copied, and where a running request is about to decode it, the newcomer waits for that. What is taken over by another
//! conversation is kept aside as a saved state, as far as memory is allowed for that.
//!
//! Models that forget (sliding windows, recurrent states) can be continued only near where they are. For them states are saved at
//! the ends of prompts, and at places where two prompts were seen to part.

mod align;

use super::decoder::{Position, SeqId, StateId, Vocab};
use crate::engine::Token;
pub use align::{Common, common};
use std::cmp::Reverse;
use std::ops::{Range, RangeInclusive};

/// A sequence is continued for what it keeps if that is this part of it at least (a half). Every chat begins with the same few
/// tokens, and they are no reason to forget a conversation while another sequence is free.
const WORTHWHILE: usize = 2;
/// Fewer tokens than this are neither worth keeping or copying nor a loss: where the sequence lies counts more.
const LITTLE: usize = 16;
/// A state has all that its sequence holds. Copying as many tokens as this costs about as much as decoding one (measured: 8 µs
/// against 1.2 ms).
const COPIED_FOR_ONE: usize = 64;
/// A state of fewer tokens is not kept aside.
const WORTH_SAVING: usize = 64;

/// The sequences and the tokens that their KV cells stand for.
#[derive(Debug)]
pub struct Cache {
    held: Vec<Held>,
    saved: Vec<Saved>,
    rules: Rules,
    clock: u64,
}

/// What is allowed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Bytes that states kept aside may take together, one in transit included; 0 is none, so nothing is copied either.
    pub bytes: u64,
    /// What a token takes of a state, about.
    pub bytes_per_token: u64,
    /// Whether what one client's requests left is never used for another's.
    pub apart: bool,
    /// Whether sequences forget, so that they can't be cut anywhere.
    pub forgets: bool,
}

#[derive(Clone, Debug, Default)]
struct Held {
    client: String,
    /// What is decoded, and behind that, of a busy sequence, the rest of its prompt.
    tokens: Vec<Token>,
    decoded: usize,
    /// Which of the tokens were sampled.
    said: Vec<Range<usize>>,
    busy: bool,
    /// Whether it waits for another one's prompt.
    waits: bool,
    used: u64,
}

/// What a sequence held when it was saved.
#[derive(Debug)]
struct Saved {
    client: String,
    tokens: Vec<Token>,
    said: Vec<Range<usize>>,
    /// Lengths to which it can be cut once it is back.
    cuttable: RangeInclusive<Position>,
    state: StateId,
    bytes: u64,
    used: u64,
}

/// A request that wants a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Who asks.
    pub client: &'a str,
    /// Its prompt.
    pub prompt: &'a [Token],
    /// Whether anything may be continued.
    pub reuse: bool,
    /// Tokens that the prompt may have at most.
    pub longest: usize,
}

/// What the decoder and the vocabulary know.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// Lengths to which a sequence can be cut; see [`super::decoder::Decoder::cuttable`].
    pub cuttable: &'a dyn Fn(SeqId) -> RangeInclusive<Position>,
    /// Bytes of a sequence's state.
    pub bytes: &'a dyn Fn(SeqId) -> u64,
    /// The vocabulary.
    pub vocab: &'a dyn Vocab,
}

/// How a request begins in its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The sequence keeps its own first tokens.
    Keep(Position),
    /// It gets the first tokens of another one.
    Copy {
        /// Who has them.
        from: SeqId,
        /// How many.
        length: Position,
    },
    /// It gets the first tokens of a saved state.
    Restore {
        /// Which.
        state: StateId,
        /// How many.
        length: Position,
    },
    /// It waits until a running request has decoded the tokens that it needs, too.
    Follow {
        /// Who decodes them.
        leader: SeqId,
        /// How many.
        length: Position,
    },
}

impl Start {
    /// Tokens that need no decoding.
    pub fn length(self) -> Position {
        match self {
            Self::Keep(length)
            | Self::Copy { length, .. }
            | Self::Restore { length, .. }
            | Self::Follow { length, .. } => length,
        }
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its sequence.
    pub seq: SeqId,
    /// How it begins.
    pub start: Start,
    /// What it shares with the tokens that are there.
    pub common: Common,
    /// Whether what the sequence holds should be saved before it goes.
    pub save: bool,
    /// Where the sequence should be saved once it has as many tokens: another prompt had the same ones up to here.
    pub mark: Option<Position>,
}

/// A beginning that could be had.
#[derive(Clone, Copy, Debug)]
struct Offer {
    start: Start,
    common: Common,
}

impl Offer {
    fn length(&self) -> usize {
        self.start.length() as usize
    }
}

impl Cache {
    /// Book-keeping for `sequences` empty sequences.
    pub fn new(sequences: u32, rules: Rules) -> Self {
        Self {
            held: vec![Held::default(); sequences as usize],
            saved: Vec::new(),
            rules,
            clock: 0,
        }
    }

    /// Chooses an idle sequence and a beginning for a request, or `None` when all are busy. At least the last token of the prompt is
    /// left to be decoded, because its logits are needed. Nothing changes before [`Cache::begin`].
    pub fn choose(&self, wanted: Wanted<'_>, facts: Facts<'_>) -> Option<Choice> {
        let shared: Vec<Common> = self
            .held
            .iter()
            .map(|held| self.shared(held, wanted, facts))
            .collect();
        let in_place = |index: usize| self.in_place(index, shared[index], wanted, facts);
        let (index, mut offer) = self.idle_one(in_place)?;
        let best = self.elsewhere(&shared, wanted, facts, |_| true);
        let mut target = index;
        if let Some(best) = best
            && best.length() >= offer.length() + LITTLE
        {
            // What is copied from is the last to be overwritten.
            let source = match best.start {
                Start::Copy { from, .. } => Some(from.0 as usize),
                _ => None,
            };
            let nothing = Offer {
                start: Start::Keep(0),
                common: Common::default(),
            };
            let empty = |index: usize| {
                if Some(index) == source {
                    in_place(index)
                } else {
                    nothing
                }
            };
            (target, offer) = self.idle_one(empty)?;
            if Some(target) != source {
                offer = best;
            }
        }
        let lost = &self.held[target];
        let kept = match offer.start {
            Start::Keep(length) => length as usize,
            _ => 0,
        };
        let restored = match offer.start {
            Start::Restore { state, .. } => self.state_bytes(state),
            _ => 0,
        };
        Some(Choice {
            seq: seq(target),
            start: offer.start,
            common: offer.common,
            save: lost.decoded >= kept + WORTH_SAVING
                && (facts.bytes)(seq(target)) + restored <= self.rules.bytes,
            mark: self.mark(&shared, offer, wanted, facts),
        })
    }

    /// Chooses anew for a request whose leader is gone. It has its sequence already, which is empty, and its tokens stay as they are.
    pub fn choose_again(&self, own: SeqId, wanted: Wanted<'_>, facts: Facts<'_>) -> Start {
        let wanted = Wanted {
            longest: 0,
            ..wanted
        };
        let shared: Vec<Common> = self
            .held
            .iter()
            .map(|held| self.shared(held, wanted, facts))
            .collect();
        let best = self.elsewhere(&shared, wanted, facts, |index| seq(index) != own);
        best.filter(|offer| offer.length() >= LITTLE)
            .map_or(Start::Keep(0), |offer| offer.start)
    }

    fn shared(&self, held: &Held, wanted: Wanted<'_>, facts: Facts<'_>) -> Common {
        if !wanted.reuse || !self.may_share(&held.client, wanted.client) {
            return Common::default();
        }
        shared(&held.tokens, &held.said, wanted, facts.vocab)
    }

    fn may_share(&self, owner: &str, client: &str) -> bool {
        !self.rules.apart || owner == client
    }

    /// What an idle sequence can keep.
    fn in_place(
        &self,
        index: usize,
        shared: Common,
        wanted: Wanted<'_>,
        facts: Facts<'_>,
    ) -> Offer {
        let length = usable(
            shared,
            wanted.prompt.len(),
            self.held[index].decoded,
            &(facts.cuttable)(seq(index)),
        );
        Offer {
            start: Start::Keep(length),
            common: if length > 0 {
                shared
            } else {
                Common::default()
            },
        }
    }

    /// The idle sequence that suits best, given what each would keep.
    fn idle_one(&self, offer: impl Fn(usize) -> Offer) -> Option<(usize, Offer)> {
        let idle = self.held.iter().enumerate().filter(|(_, held)| !held.busy);
        idle.map(|(index, held)| (index, offer(index), held))
            // Much to keep first; then little to lose, best beside a busy one; then the most to keep; then the one that was not
            // used for the longest time.
            .max_by_key(|(index, offer, held)| {
                let keep = offer.length();
                let worth = keep * WORTHWHILE >= held.decoded;
                let counted = if worth { keep } else { 0 };
                let little = held.decoded - keep < LITTLE;
                let beside = little && self.beside_a_busy_one(*index);
                let empty = held.decoded == 0;
                (
                    counted / LITTLE,
                    little,
                    beside,
                    counted,
                    empty,
                    Reverse(held.used),
                    Reverse(*index),
                )
            })
            .map(|(index, offer, _)| (index, offer))
    }

    /// The longest beginning that other sequences, their prompts to come, or saved states have.
    fn elsewhere(
        &self,
        shared: &[Common],
        wanted: Wanted<'_>,
        facts: Facts<'_>,
        may: impl Fn(usize) -> bool,
    ) -> Option<Offer> {
        let prompt = wanted.prompt.len();
        let others = shared.iter().enumerate().filter(|(index, _)| may(*index));
        let live = others.flat_map(|(index, common)| {
            let held = &self.held[index];
            let now = usable(*common, prompt, held.decoded, &(facts.cuttable)(seq(index)));
            let affordable = held.decoded <= COPIED_FOR_ONE * now as usize
                && (facts.bytes)(seq(index)) <= self.rules.bytes;
            let copy = Start::Copy {
                from: seq(index),
                length: now,
            };
            let later = position(common.held.min(aligned(*common, prompt).saturating_sub(1)));
            let ahead = held.busy && !held.waits && later as usize > held.decoded;
            let follow = Start::Follow {
                leader: seq(index),
                length: later,
            };
            let fits = u64::from(later) * self.rules.bytes_per_token <= self.rules.bytes;
            [
                (affordable, copy),
                (ahead && fits && self.rules.bytes > 0, follow),
            ]
            .into_iter()
            .filter_map(|(possible, start)| {
                possible.then_some(Offer {
                    start,
                    common: *common,
                })
            })
        });
        let aside = self
            .saved
            .iter()
            .filter(|saved| wanted.reuse && self.may_share(&saved.client, wanted.client));
        let aside = aside.map(|saved| {
            let common = shared_with(saved, wanted, facts.vocab);
            let length = usable(common, prompt, saved.tokens.len(), &saved.cuttable);
            Offer {
                start: Start::Restore {
                    state: saved.state,
                    length,
                },
                common,
            }
        });
        // Of equally long ones the last: waiting costs more than copying, and copying more than what is aside already.
        let sooner = |start: &Start| match start {
            Start::Follow { .. } => 0,
            Start::Copy { .. } => 1,
            Start::Restore { .. } | Start::Keep(_) => 2,
        };
        live.chain(aside)
            .filter(|offer| offer.length() > 0)
            .max_by_key(|offer| {
                (
                    offer.length() / LITTLE,
                    sooner(&offer.start),
                    offer.length(),
                )
            })
    }

    /// Where to save: the model forgets, and a prompt that was here before had much more in common than could be used.
    fn mark(
        &self,
        shared: &[Common],
        offer: Offer,
        wanted: Wanted<'_>,
        facts: Facts<'_>,
    ) -> Option<Position> {
        if !self.rules.forgets || !wanted.reuse {
            return None;
        }
        let aside = self
            .saved
            .iter()
            .filter(|saved| self.may_share(&saved.client, wanted.client));
        let aside = aside.map(|saved| shared_with(saved, wanted, facts.vocab));
        let most = shared
            .iter()
            .copied()
            .chain(aside)
            .map(|common| common.prompt)
            .max()?;
        // In the tokens that the prompt will have.
        let most = most
            .min(wanted.prompt.len() - 1)
            .checked_sub(offer.common.prompt)?
            + offer.common.held;
        (most >= WORTH_SAVING && most >= offer.length() + LITTLE).then_some(position(most))
    }

    /// llama.cpp takes the rows of a step in one pass over the weights only where their sequences are neighbours; every gap costs
    /// another pass.
    fn beside_a_busy_one(&self, index: usize) -> bool {
        let busy = |index: usize| self.held.get(index).is_some_and(|held| held.busy);
        busy(index + 1) || index.checked_sub(1).is_some_and(busy)
    }

    fn state_bytes(&self, state: StateId) -> u64 {
        let saved = self.saved.iter().find(|saved| saved.state == state);
        saved.map_or(0, |saved| saved.bytes)
    }

    /// The prompt in the tokens that the chosen beginning has, where they are not its own.
    pub fn aligned(&self, choice: &Choice, prompt: &[Token]) -> Option<Vec<Token>> {
        let Common {
            held,
            prompt: replaced,
        } = choice.common;
        let tokens = match choice.start {
            Start::Keep(_) => &self.held[choice.seq.0 as usize].tokens,
            Start::Copy { from, .. } | Start::Follow { leader: from, .. } => {
                &self.held[from.0 as usize].tokens
            }
            Start::Restore { state, .. } => {
                &self.saved.iter().find(|saved| saved.state == state)?.tokens
            }
        };
        let begin = tokens.get(..held)?;
        let rest = prompt.get(replaced..)?;
        (begin != &prompt[..replaced]).then(|| [begin, rest].concat())
    }

    /// Notes that a state is about to be used.
    pub fn touch(&mut self, state: StateId) {
        self.clock += 1;
        if let Some(saved) = self.saved.iter_mut().find(|saved| saved.state == state) {
            saved.used = self.clock;
        }
    }

    /// Gives a sequence to a request. `prompt` is the whole prompt, in the tokens that the chosen beginning has.
    pub fn begin(&mut self, client: &str, prompt: &[Token], choice: &Choice) {
        self.clock += 1;
        let said = self.said_before(choice);
        let held = &mut self.held[choice.seq.0 as usize];
        client.clone_into(&mut held.client);
        held.tokens.clear();
        held.tokens.extend_from_slice(prompt);
        held.said = said;
        held.busy = true;
        held.used = self.clock;
        held.waits = matches!(choice.start, Start::Follow { .. });
        held.decoded = match choice.start {
            Start::Keep(length) => length as usize,
            // Until they are there.
            _ => 0,
        };
    }

    /// What was sampled, of the tokens with which a request begins.
    fn said_before(&self, choice: &Choice) -> Vec<Range<usize>> {
        let said = match choice.start {
            Start::Keep(_) => Some(&self.held[choice.seq.0 as usize].said),
            Start::Copy { from, .. } | Start::Follow { leader: from, .. } => {
                Some(&self.held[from.0 as usize].said)
            }
            Start::Restore { state, .. } => {
                let saved = self.saved.iter().find(|saved| saved.state == state);
                saved.map(|saved| &saved.said)
            }
        };
        said.map_or_else(Vec::new, |said| clipped(said, choice.common.held))
    }

    /// Notes that the sequence got the first `length` tokens of its prompt without decoding them, or none.
    pub fn got(&mut self, seq: SeqId, length: Position) {
        let held = &mut self.held[seq.0 as usize];
        held.decoded = (length as usize).min(held.tokens.len());
        held.waits = false;
    }

    /// Notes that the sequence waits for another one's prompt.
    pub fn waits(&mut self, seq: SeqId) {
        self.held[seq.0 as usize].waits = true;
    }

    /// Notes that the next `count` tokens of the sequence's prompt were decoded.
    pub fn advance(&mut self, seq: SeqId, count: usize) {
        let held = &mut self.held[seq.0 as usize];
        held.decoded = (held.decoded + count).min(held.tokens.len());
    }

    /// Notes that a sampled token was decoded.
    pub fn push(&mut self, seq: SeqId, token: Token) {
        let held = &mut self.held[seq.0 as usize];
        let at = held.tokens.len();
        match held.said.last_mut() {
            Some(said) if said.end == at => said.end += 1,
            _ => held.said.push(at..at + 1),
        }
        held.tokens.push(token);
        held.decoded = held.tokens.len();
    }

    /// The tokens that the sequence holds.
    pub fn tokens(&self, seq: SeqId) -> &[Token] {
        let held = &self.held[seq.0 as usize];
        &held.tokens[..held.decoded]
    }

    /// How many they are.
    pub fn len(&self, seq: SeqId) -> usize {
        self.held[seq.0 as usize].decoded
    }

    /// Gives the sequence back; what it holds stays for others.
    pub fn release(&mut self, seq: SeqId) {
        self.clock += 1;
        let held = &mut self.held[seq.0 as usize];
        held.busy = false;
        held.waits = false;
        held.used = self.clock;
        held.tokens.truncate(held.decoded);
        held.said = clipped(&held.said, held.decoded);
    }

    /// Forgets what the sequence holds, whoever has it.
    pub fn forget(&mut self, seq: SeqId) {
        let held = &mut self.held[seq.0 as usize];
        held.decoded = 0;
        held.said.clear();
        if !held.busy {
            held.tokens.clear();
        }
    }

    /// Whether the state of what the sequence holds should be taken: it may be, it is worth it, and is not there already.
    pub fn would_save(&self, seq: SeqId, bytes: u64) -> bool {
        let held = &self.held[seq.0 as usize];
        let tokens = &held.tokens[..held.decoded];
        let same =
            |saved: &Saved| saved.tokens == tokens && self.may_share(&saved.client, &held.client);
        tokens.len() >= WORTH_SAVING && bytes <= self.rules.bytes && !self.saved.iter().any(same)
    }

    /// Keeps a state of what the sequence holds, and returns those that must make room, the least recently used first.
    pub fn save(
        &mut self,
        seq: SeqId,
        state: StateId,
        bytes: u64,
        cuttable: RangeInclusive<Position>,
    ) -> Vec<StateId> {
        self.clock += 1;
        let held = &self.held[seq.0 as usize];
        self.saved.push(Saved {
            client: held.client.clone(),
            tokens: held.tokens[..held.decoded].to_vec(),
            said: clipped(&held.said, held.decoded),
            cuttable,
            state,
            bytes,
            used: self.clock,
        });
        self.make_room(0)
    }

    /// Room for a state of `bytes` in transit: those that must go for it.
    pub fn make_room(&mut self, bytes: u64) -> Vec<StateId> {
        let mut gone = Vec::new();
        while self.saved_bytes() + bytes > self.rules.bytes {
            let oldest = (0..self.saved.len()).min_by_key(|index| self.saved[*index].used);
            let Some(oldest) = oldest else { break };
            gone.push(self.saved.remove(oldest).state);
        }
        gone
    }

    /// Forgets a state that turned out to be of no use.
    pub fn drop_state(&mut self, state: StateId) {
        self.saved.retain(|saved| saved.state != state);
    }

    /// Bytes of the states kept aside.
    pub fn saved_bytes(&self) -> u64 {
        self.saved.iter().map(|saved| saved.bytes).sum()
    }

    /// Cells in use, busy and kept ones.
    pub fn cells(&self) -> usize {
        self.held.iter().map(|held| held.decoded).sum()
    }

    /// Whether a sequence is idle.
    pub fn any_idle(&self) -> bool {
        self.held.iter().any(|held| !held.busy)
    }
}

fn seq(index: usize) -> SeqId {
    // There are at most 256 sequences.
    SeqId(u32::try_from(index).unwrap_or(u32::MAX))
}

fn position(tokens: usize) -> Position {
    Position::try_from(tokens).unwrap_or(Position::MAX)
}

/// Tokens of a prompt whose beginning is replaced by the tokens that are there.
fn aligned(common: Common, prompt: usize) -> usize {
    common.held + prompt - common.prompt
}

fn shared_with(saved: &Saved, wanted: Wanted<'_>, vocab: &dyn Vocab) -> Common {
    shared(&saved.tokens, &saved.said, wanted, vocab)
}

fn shared(
    tokens: &[Token],
    said: &[Range<usize>],
    wanted: Wanted<'_>,
    vocab: &dyn Vocab,
) -> Common {
    let shared = common(tokens, said, wanted.prompt, vocab);
    if aligned(shared, wanted.prompt.len()) <= wanted.longest {
        return shared;
    }
    // In the tokens that are there it would be too long.
    common(tokens, &[], wanted.prompt, vocab)
}

/// The longest part of the prompt that can be used of `decoded` tokens that can be cut so.
fn usable(
    common: Common,
    prompt: usize,
    decoded: usize,
    cuttable: &RangeInclusive<Position>,
) -> Position {
    let most = aligned(common, prompt).saturating_sub(1);
    let length = position(common.held.min(most));
    if length as usize <= decoded && cuttable.contains(&length) {
        return length;
    }
    // More may be in common than is decoded yet.
    let decoded = position(decoded);
    if decoded < length && cuttable.contains(&decoded) {
        decoded
    } else {
        0
    }
}

fn clipped(ranges: &[Range<usize>], length: usize) -> Vec<Range<usize>> {
    let clipped = ranges
        .iter()
        .map(|range| range.start..range.end.min(length));
    clipped.filter(|range| !range.is_empty()).collect()
}

#[cfg(test)]
mod tests;
