//! Where requests begin: in what their sequence holds, in a copy of what another one has, or behind a running one.

use super::{Engine, count};
use crate::engine::Event;
use crate::worker::cache::{Choice, Facts, Start, Wanted};
use crate::worker::decoder::{Position, SeqId, StateId};
use crate::worker::sequence::{Arrival, Lead, Sequence};
use std::ops::RangeInclusive;

/// Asks the decoder what the cache wants to know.
macro_rules! facts {
    ($engine:ident) => {
        Facts {
            cuttable: &|seq| $engine.decoder.cuttable(seq),
            bytes: &|seq| $engine.decoder.state_bytes(seq),
            vocab: &*$engine.vocab,
        }
    };
}

impl Engine<'_> {
    /// Gives free sequences to those who are next. A request is admitted only when a whole sequence is free, so a step
    /// never lacks cells.
    pub(super) fn admit(&mut self) {
        while self.cache.any_idle() {
            let Some(mut arrival) = self.queue.pop() else {
                return;
            };
            let wanted = self.wanted(&arrival);
            // There is one: `any_idle` said so.
            let Some(choice) = self.cache.choose(wanted, facts!(self)) else {
                return;
            };
            if let Some(prompt) = self.cache.aligned(&choice, &arrival.prompt) {
                let longest = self.sizes.context_per_sequence as usize;
                arrival.max_tokens = arrival
                    .max_tokens
                    .min(count(longest - prompt.len().min(longest)));
                arrival.prompt = prompt;
            }
            self.begin(*arrival, &choice);
        }
    }

    fn wanted<'a>(&self, arrival: &'a Arrival) -> Wanted<'a> {
        Wanted {
            client: &arrival.client,
            prompt: &arrival.prompt,
            reuse: arrival.reuse,
            longest: self.sizes.context_per_sequence as usize - 1,
        }
    }

    fn begin(&mut self, arrival: Arrival, choice: &Choice) {
        let seq = choice.seq;
        if let Start::Restore { state, .. } = choice.start {
            self.cache.touch(state);
        }
        if choice.save {
            self.save(seq);
        }
        self.cache.begin(&arrival.client, &arrival.prompt, choice);
        let mut sequence = Sequence::new(arrival, seq);
        if let Some(mark) = choice.mark {
            sequence.stop_at(mark);
        }
        let place = self.running.partition_point(|other| other.seq < seq);
        self.running.insert(place, sequence);
        match choice.start {
            Start::Keep(length) => {
                if length == 0 {
                    self.decoder.clear(seq);
                } else {
                    self.decoder.truncate(seq, length);
                }
                self.start(place, length);
            }
            start => {
                self.decoder.clear(seq);
                self.start_elsewhere(place, start);
            }
        }
    }

    /// Starts a sequence, which is empty, with what another one has, now or later.
    fn start_elsewhere(&mut self, place: usize, start: Start) {
        let seq = self.running[place].seq;
        match start {
            Start::Keep(_) => self.start(place, 0),
            Start::Restore { state, length } => {
                let length = self.restored(state, seq, length);
                if length == 0 {
                    self.cache.drop_state(state);
                    self.decoder.discard(state);
                }
                self.start(place, length);
            }
            Start::Copy { from, length }
            | Start::Follow {
                leader: from,
                length,
            } => {
                let leader = self.running.iter_mut().find(|other| other.seq == from);
                let Some(leader) = leader else {
                    // It is idle, and might be gone soon.
                    self.copy(from, &[(place, length)]);
                    return;
                };
                if self.decoder.forgets() {
                    leader.stop_at(length);
                }
                let id = leader.arrival.id;
                self.running[place].lead = Some(Lead {
                    id,
                    seq: from,
                    length,
                });
                self.cache.waits(seq);
            }
        }
    }

    /// Lets go those whose leader has decoded what they wait for, and finds another beginning for those who lost theirs.
    pub(super) fn follow(&mut self) {
        for place in 0..self.running.len() {
            let Some(lead) = self.running[place].lead else {
                continue;
            };
            let leader = self
                .running
                .iter()
                .find(|other| other.arrival.id == lead.id);
            let held = leader.map(Sequence::held);
            if held.is_some_and(|held| held < lead.length) {
                continue;
            }
            if held.is_some() && self.decoder.cuttable(lead.seq).contains(&lead.length) {
                self.copy_to_all(lead);
            } else {
                self.running[place].lead = None;
                let sequence = &self.running[place];
                let wanted = self.wanted(&sequence.arrival);
                let start = self.cache.choose_again(sequence.seq, wanted, facts!(self));
                self.start_elsewhere(place, start);
            }
        }
    }

    /// One state for all who wait for it.
    fn copy_to_all(&mut self, lead: Lead) {
        let held = self.cache.len(lead.seq);
        let cuttable = self.decoder.cuttable(lead.seq);
        let ready = |other: &Lead| {
            other.id == lead.id && other.length as usize <= held && cuttable.contains(&other.length)
        };
        let targets: Vec<(usize, Position)> = self
            .running
            .iter()
            .enumerate()
            .filter_map(|(place, sequence)| Some((place, sequence.lead.filter(ready)?.length)))
            .collect();
        self.copy(lead.seq, &targets);
    }

    /// Copies the first tokens of a sequence to others, which are empty. Where that fails they decode them themselves.
    fn copy(&mut self, from: SeqId, targets: &[(usize, Position)]) {
        let bytes = self.decoder.state_bytes(from);
        let fits = bytes <= self.sizes.cache_bytes;
        let gone = if fits {
            self.cache.make_room(bytes)
        } else {
            Vec::new()
        };
        self.discard(&gone);
        let state = if fits { self.decoder.save(from) } else { None };
        for (place, length) in targets {
            let seq = self.running[*place].seq;
            let length = state.map_or(0, |state| self.restored(state, seq, *length));
            self.start(*place, length);
        }
        if let Some(state) = state {
            self.decoder.discard(state);
        }
    }

    /// Gives an empty sequence the first `length` tokens of a state; returns how many it got.
    fn restored(&mut self, state: StateId, seq: SeqId, length: Position) -> Position {
        if !self.decoder.restore(state, seq) {
            return 0;
        }
        if !self.decoder.cuttable(seq).contains(&length) {
            self.decoder.clear(seq);
            return 0;
        }
        self.decoder.truncate(seq, length);
        length
    }

    /// From here on the sequence decodes for itself, behind its first `cached` tokens.
    fn start(&mut self, place: usize, cached: Position) {
        let sequence = &mut self.running[place];
        sequence.begin_at(cached);
        self.cache.got(sequence.seq, cached);
        self.stats.cached_rows += u64::from(cached);
        let started = Event::Started {
            cached_tokens: cached,
        };
        self.events.push((sequence.arrival.id, started));
    }

    /// Keeps a state of what the sequence holds, if that is worth it.
    pub(super) fn save(&mut self, seq: SeqId) {
        let bytes = self.decoder.state_bytes(seq);
        if !self.cache.would_save(seq, bytes) {
            return;
        }
        let gone = self.cache.make_room(bytes);
        self.discard(&gone);
        let cuttable: RangeInclusive<Position> = self.decoder.cuttable(seq);
        if let Some(state) = self.decoder.save(seq) {
            self.cache.save(seq, state, bytes, cuttable);
        }
    }

    fn discard(&mut self, states: &[StateId]) {
        for state in states {
            self.decoder.discard(*state);
        }
    }
}
