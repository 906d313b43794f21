//! One step: which rows go in, and what is made of their logits.

use super::draft::Undrafted;
use super::{Engine, count, micros};
use crate::engine::{EngineError, Event, FinishReason, Token};
use crate::worker::decoder::{Row, SeqId};
use crate::worker::scheduler::{Turn, Waiting, share_rows};
use crate::worker::sequence::Sequence;
use crate::worker::speculation::{self, Drafter, MOST_DRAFTED};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Prompts of models that forget are saved at their end if they are as long as this: a shorter one is soon decoded again.
const WORTH_A_STATE: usize = 128;

/// A pass in which all rows have logits takes about so much longer than one in which one row has.
const LOGITS: f32 = 1.3;

/// What a sequence has in a step.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// Where its rows begin.
    first: usize,
    rows: usize,
    decoding: bool,
}

/// What became of a sequence's rows so far, while logits are looked at.
#[derive(Clone, Debug, Default)]
struct Spoken {
    tokens: Vec<Token>,
    /// Whether a draft went wrong, or the answer is over: what follows counts no more.
    over: bool,
}

impl Engine<'_> {
    /// One step: a row for each running answer, with drafts behind it, and prefill chunks in what time is left, or one of the two
    /// where answers are dear ([`Turn`]). Rows are in the
    /// order of their sequences, which llama.cpp needs to take them all in one pass over the weights.
    pub(super) fn step(&mut self) -> bool {
        self.rows.clear();
        let decoding = count(
            self.running
                .iter()
                .filter(|one| !one.is_done() && one.is_decoding())
                .count(),
        );
        let prompts = self.prompts();
        let first = self.first(&prompts);
        let waiting: u32 = prompts.iter().map(|one| one.left).sum();
        let most = self.sizes.batch_size;
        let left = prompts.get(first).map_or(0, |one| one.left);
        let between = self.pace.between(decoding, waiting, left, most);
        let turn = if decoding == 0 {
            Turn::Prompts
        } else if !self.pace.knows_answers() {
            Turn::Answers
        } else {
            self.turns.next(between.map_or(0, |between| between.steps))
        };
        let (budget, room) = match turn {
            Turn::Both => {
                let rows = self.pace.prefill_rows(decoding, most);
                (rows, most.saturating_sub(decoding).max(1))
            }
            Turn::Prompts => {
                let rows = between.map(|between| between.rows);
                (rows.unwrap_or_else(|| self.prompt_rows(left, most)), most)
            }
            Turn::Answers => (0, 0),
        };
        let mut chunks = share_rows(&prompts, first, budget, room);
        let scored = self.keep_one_scored(&mut chunks, first);
        let prefill = chunks.iter().sum();
        let drafts = match turn {
            Turn::Prompts => Vec::new(),
            Turn::Both if scored => vec![0; self.running.len()],
            Turn::Both | Turn::Answers => self.drafts(prefill),
        };
        let mut shares = vec![Share::default(); self.running.len()];
        for (index, sequence) in self.running.iter_mut().enumerate() {
            if sequence.is_done() || (turn == Turn::Prompts && sequence.is_decoding()) {
                continue;
            }
            let first = self.rows.len();
            let decoding = sequence.is_decoding();
            if decoding {
                sequence.append_decode(drafts[index], &mut self.rows);
            } else {
                sequence.append_prefill(chunks[index], &mut self.rows);
            }
            let rows = self.rows.len() - first;
            shares[index] = Share {
                first,
                rows,
                decoding,
            };
        }
        if self.rows.is_empty() {
            return false;
        }
        let began = Instant::now();
        for (sequence, share) in self.running.iter_mut().zip(&shares) {
            if share.rows > 0 {
                sequence.begin(began);
            }
        }
        self.decode(&shares, prefill);
        true
    }

    /// Takes from all prompts but one whose likelihood is wanted what they were given, and returns whether there is such a one: each of their
    /// rows asks for logits, for which memory is planned once.
    fn keep_one_scored(&self, chunks: &mut [u32], first: usize) -> bool {
        let scored = |index: usize| self.running.get(index).is_some_and(Sequence::scores_prompt);
        let served = (0..chunks.len()).filter(|index| chunks[*index] > 0 && scored(*index));
        let kept = served.min_by_key(|index| (*index != first, *index));
        for (index, chunk) in chunks.iter_mut().enumerate() {
            if Some(index) != kept && scored(index) {
                *chunk = 0;
            }
        }
        kept.is_some()
    }

    /// Rows of prompts in a step that has none of answers.
    fn prompt_rows(&self, left: u32, most: u32) -> u32 {
        if self.running.len() == 1 && self.queue.is_empty() && self.texts.is_empty() {
            return self.pace.only_prompt_rows(left, most);
        }
        self.pace.prompt_rows(left, most)
    }

    /// What is left of each running sequence's prompt.
    fn prompts(&self) -> Vec<Waiting> {
        let waiting = |one: &Sequence| !one.is_done() && !one.is_decoding();
        self.running
            .iter()
            .map(|one| Waiting {
                seq: one.seq.0,
                left: if waiting(one) { one.prefill_left() } else { 0 },
            })
            .collect()
    }

    /// Whose prompt comes first: for two steps the one of which least is left, so that a short question does not wait for long ones;
    /// then for two the one that came first, so that none waits for ever.
    fn first(&self, prompts: &[Waiting]) -> usize {
        let oldest = self.stats.steps / 2 % 2 == 1;
        let waiting = prompts.iter().enumerate().filter(|(_, one)| one.left > 0);
        let first = waiting.min_by_key(|(index, one)| {
            let left = if oldest { 0 } else { one.left };
            (left, self.running[*index].arrival.id)
        });
        first.map_or(0, |(index, _)| index)
    }

    /// How many tokens each running sequence drafts: none before it is known what a step without drafts takes.
    fn drafts(&mut self, prefill: u32) -> Vec<usize> {
        let mut lengths = vec![0; self.running.len()];
        if self.sizes.draft_rows == 0 || !self.pace.knows_answers() {
            return lengths;
        }
        let (context, pool, vocab) = (self.sizes.context_per_sequence, &self.pool, &*self.vocab);
        let speaking = self
            .running
            .iter_mut()
            .enumerate()
            .filter(|(_, one)| !one.is_done() && one.is_decoding());
        let (who, mut chances): (Vec<usize>, Vec<Vec<f32>>) = speaking
            .map(|(index, sequence)| {
                let most = MOST_DRAFTED.min(sequence.draftable(context) as usize);
                let goes_on = sequence.passes_over_ends();
                let ends = |token| !goes_on && vocab.is_end(token);
                let drafter = sequence.drafter.as_mut();
                let guess = |drafter: &mut Drafter| drafter.guess(pool, most, ends);
                (index, drafter.map_or_else(Vec::new, guess))
            })
            .unzip();
        let seqs: Vec<u32> = who.iter().map(|one| self.running[*one].seq.0).collect();
        let room = self
            .sizes
            .draft_rows
            .min(self.sizes.batch_size.saturating_sub(prefill));
        let (prefill_ms, room) = (self.pace.prefill_ms(prefill), room as usize);
        let mut planned = speculation::plan(&chances, &seqs, &self.costs, prefill_ms, room);
        let undrafted = Undrafted {
            who: &who,
            planned: &planned,
            prefill_ms,
            room,
        };
        if !who.is_empty() && self.ask_model(&undrafted, &mut chances) {
            planned = speculation::plan(&chances, &seqs, &self.costs, prefill_ms, room);
        }
        for (index, length) in who.into_iter().zip(planned.lengths) {
            lengths[index] = length;
        }
        lengths
    }

    fn decode(&mut self, shares: &[Share], prefill: u32) {
        let owners: HashMap<SeqId, usize> = self
            .running
            .iter()
            .enumerate()
            .map(|(index, one)| (one.seq, index))
            .collect();
        let mut spoken = vec![Spoken::default(); self.running.len()];
        let mut speaking = Duration::ZERO;
        let began = Instant::now();
        let (rows, running, vocab) = (&self.rows, &mut self.running, &*self.vocab);
        let result = self.decoder.step(rows, &mut |index, logits| {
            let now = Instant::now();
            if let Some(row) = rows.get(index)
                && let Some(owner) = owners.get(&row.seq)
            {
                let drafted = shares[*owner].decoding && index > shares[*owner].first;
                speak(
                    row,
                    drafted,
                    logits,
                    now,
                    (&mut running[*owner], &mut spoken[*owner], vocab),
                );
            }
            speaking += now.elapsed();
        });
        let took = began.elapsed().saturating_sub(speaking);
        self.stats.steps += 1;
        self.stats.decode_us += micros(took);
        if let Err(error) = result {
            tracing::error!(%error, rows = self.rows.len(), "a step failed");
            self.fail_step(&error.to_string());
            return;
        }
        self.learn(shares, prefill, took);
        for index in 0..self.running.len() {
            self.settle(index, shares[index], &spoken[index].tokens);
        }
    }

    /// What a step took says what the next ones will take.
    fn learn(&mut self, shares: &[Share], prefill: u32, took: Duration) {
        let decoding = count(self.rows.len()) - prefill;
        let ms = took.as_secs_f64() * 1000.0;
        self.stats.decode_rows += u64::from(decoding);
        self.stats.prefill_rows += u64::from(prefill);
        let answers = count(shares.iter().filter(|share| share.decoding).count());
        if prefill > 0 || answers == decoding {
            self.pace.observe(decoding, prefill, ms);
        }
        if self.sizes.costs.is_some() {
            return;
        }
        // Only a step of one pass says what a pass costs; of two, the second one's part.
        let sizes = self.running.iter().zip(shares);
        let sizes = sizes.map(|(sequence, share)| (sequence.seq.0, count(share.rows)));
        let made = speculation::passes(sizes);
        #[expect(clippy::cast_possible_truncation, reason = "milliseconds")]
        let ms = ms as f32;
        if prefill > 0 {
            // Only one row of a prompt has logits, which are a good part of a pass in a small model.
            if shares.iter().filter(|share| share.rows > 0).count() == 1 {
                self.costs.guess(prefill, ms * LOGITS);
            }
        } else if answers == decoding {
            // However the sequences lie: a gap between them may have cost a second pass.
            self.costs.observe(answers, ms);
        } else if let [rows] = made[..] {
            self.costs.observe(rows, ms);
        } else if let [first, longer] = made[..]
            && first == answers
            && let Some(first) = self.costs.ms(first)
        {
            self.costs.observe(longer, ms - first);
        }
    }

    /// Takes in what a sequence decoded and said.
    fn settle(&mut self, index: usize, share: Share, said: &[Token]) {
        if share.rows == 0 {
            return;
        }
        let sequence = &mut self.running[index];
        let seq = sequence.seq;
        let rows = &self.rows[share.first..share.first + share.rows];
        if share.decoding {
            // Each token that was said rests on one row; of a draft that went wrong, or too far, the rest is taken back.
            let kept = said.len().clamp(1, rows.len());
            for row in &rows[..kept] {
                self.cache.push(seq, row.token);
            }
            sequence.spoke(count(kept - 1));
            self.stats.draft_rows += (rows.len() - 1) as u64;
            self.stats.draft_rows_kept += (kept - 1) as u64;
            if kept < rows.len() {
                self.take_back(index);
            }
        } else {
            self.cache.advance(seq, rows.len());
            sequence.advance(count(rows.len()));
            self.first |= !said.is_empty();
            let ended = sequence.held() as usize == sequence.arrival.prompt.len();
            let long = sequence.arrival.prompt.len() >= WORTH_A_STATE;
            if sequence.stands_at_a_stop() && (!ended || long) && self.decoder.forgets() {
                self.save(seq);
            }
        }
        let sequence = &mut self.running[index];
        if self.sizes.draft_rows > 0 && !said.is_empty() {
            let (arrival, context) = (&sequence.arrival, self.sizes.context_per_sequence);
            let drafter = sequence.drafter.get_or_insert_with(|| {
                let longest = arrival.prompt.len() + arrival.max_tokens as usize;
                Drafter::new(
                    &arrival.client,
                    &arrival.prompt,
                    longest.min(context as usize),
                )
            });
            drafter.said(said, &mut self.pool);
        }
        let (id, mut events) = (sequence.arrival.id, Vec::new());
        if sequence.prefill_left() == 0 {
            events.extend(sequence.take_echo(&*self.vocab));
        }
        sequence.tell(&mut events);
        self.events
            .extend(events.into_iter().map(|event| (id, event)));
    }

    /// Removes the rows that a draft had too many.
    fn take_back(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        let (seq, to) = (sequence.seq, sequence.held());
        if self.decoder.cuttable(seq).contains(&to) {
            self.decoder.truncate(seq, to);
            return;
        }
        // Never seen: `Decoder::takes_back` promises otherwise.
        tracing::error!(?seq, to, "a draft could not be taken back");
        self.decoder.clear(seq);
        self.cache.forget(seq);
        sequence.fail(EngineError::Internal(
            "a draft could not be taken back".into(),
        ));
    }

    /// After a failed step the sequences of its rows can't be trusted: their requests end, their cells are cleared.
    fn fail_step(&mut self, error: &str) {
        let failed: Vec<SeqId> = self.rows.iter().map(|row| row.seq).collect();
        let ended = self
            .running
            .extract_if(.., |sequence| failed.contains(&sequence.seq));
        for sequence in ended {
            self.decoder.clear(sequence.seq);
            self.cache.forget(sequence.seq);
            self.cache.release(sequence.seq);
            let error = EngineError::Internal(error.to_owned());
            self.events
                .push((sequence.arrival.id, Event::Failed(error)));
        }
    }

    /// Ends what is done; the sequence keeps its cells for whoever continues them.
    pub(super) fn retire(&mut self) {
        for mut sequence in self.running.extract_if(.., |sequence| sequence.is_done()) {
            let (id, mut said) = (sequence.arrival.id, Vec::new());
            let finished = sequence.finish(&mut said);
            self.events
                .extend(said.into_iter().map(|event| (id, event)));
            let left = sequence.take_logprobs();
            // What a stop string cut off is no part of the answer; the bytes of a broken character are.
            let is_part = matches!(&finished, Event::Finished(outcome)
                if !matches!(outcome.reason, FinishReason::Stop | FinishReason::ToolCalls));
            if !left.is_empty() && is_part {
                let text = Event::Text {
                    text: String::new(),
                    thinking: false,
                    logprobs: left,
                };
                self.events.push((id, text));
            }
            self.events.push((id, finished));
            if sequence.drafter.is_some() {
                let (client, answer) = (&sequence.arrival.client, sequence.arrival.prompt.len());
                self.pool
                    .learn(client, self.cache.tokens(sequence.seq), answer);
            }
            self.cache.release(sequence.seq);
        }
    }
}

/// Looks at the logits of a row. Those behind a drafted token count only if it was said.
fn speak(
    row: &Row,
    drafted: bool,
    logits: &[f32],
    now: Instant,
    (sequence, spoken, vocab): (
        &mut Sequence,
        &mut Spoken,
        &dyn crate::worker::decoder::Vocab,
    ),
) {
    if spoken.over || (drafted && spoken.tokens.last() != Some(&row.token)) {
        spoken.over = true;
        return;
    }
    spoken
        .tokens
        .extend(sequence.speak(logits, row.position + 1, now, vocab));
    spoken.over = sequence.is_done();
}
