//! Embeddings: one text after another, in chunks between the steps of answers, so that a long text holds up no stream.
//!
//! Every token's embedding comes from the decoder; a text's is made of them here, because llama.cpp's own pooling is wrong for a
//! text that is decoded in parts. Knows no decoder and no channel.

use super::decoder::Position;
use crate::engine::wire::RequestId;
use crate::engine::{Embedded, Pooling, Token};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The texts of one question, and what is known of their embeddings.
pub struct Texts {
    /// The question's number on the wire.
    pub id: RequestId,
    /// Who asks.
    client: String,
    deadline: Option<Instant>,
    /// None is empty.
    inputs: Vec<Vec<Token>>,
    cancelled: Arc<AtomicBool>,
    vectors: Vec<Vec<f32>>,
    /// Tokens of the text under way that are decoded.
    decoded: usize,
    /// What is pooled of them so far.
    pooled: Vec<f32>,
}

impl Texts {
    /// Texts of which nothing is decoded.
    pub fn new(
        (id, client): (RequestId, String),
        texts: Vec<Vec<Token>>,
        deadline: Option<Instant>,
        cancelled: Arc<AtomicBool>,
    ) -> Self {
        Self {
            id,
            client,
            deadline,
            inputs: texts,
            cancelled,
            vectors: Vec::new(),
            decoded: 0,
            pooled: Vec::new(),
        }
    }

    /// Whether nobody waits for them any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether the deadline has passed.
    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Whether a text is under way.
    pub fn is_mid_text(&self) -> bool {
        self.decoded > 0
    }

    /// Whether all embeddings are there.
    pub fn is_done(&self) -> bool {
        self.vectors.len() == self.inputs.len()
    }

    /// The next tokens to decode, `most` at most, and the position of the first; position 0 begins a new text.
    pub fn next_chunk(&self, most: usize) -> (&[Token], Position) {
        let text = self.inputs.get(self.vectors.len());
        let rest = text.map_or(&[][..], |text| &text[self.decoded..]);
        let position = Position::try_from(self.decoded).unwrap_or(Position::MAX);
        (&rest[..rest.len().min(most.max(1))], position)
    }

    /// Takes in the embeddings of a decoded chunk, one for each of its tokens and all of one length.
    pub fn take<'a>(&mut self, pooling: Pooling, chunk: impl Iterator<Item = &'a [f32]>) {
        for embedding in chunk {
            match pooling {
                Pooling::Mean if self.decoded > 0 => {
                    for (sum, number) in self.pooled.iter_mut().zip(embedding) {
                        *sum += number;
                    }
                }
                Pooling::Cls if self.decoded > 0 => {}
                _ => self.pooled = embedding.to_vec(),
            }
            self.decoded += 1;
        }
        let text = self.inputs.get(self.vectors.len());
        if text.is_some_and(|text| self.decoded >= text.len()) {
            let pooled = std::mem::take(&mut self.pooled);
            self.vectors.push(normalised(pooled));
            self.decoded = 0;
        }
    }

    /// All embeddings.
    pub fn finish(self) -> Embedded {
        let tokens = self.inputs.iter().map(Vec::len).sum::<usize>();
        Embedded {
            vectors: self.vectors,
            prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
        }
    }
}

/// Questions that wait for their embeddings. After each text it is the next client's turn, and of one client the next
/// question's: a long list holds up nobody with a short one, and many lists are as good as one.
#[derive(Default)]
pub struct Round {
    /// Clients in the order of their turns; none is without a question.
    clients: VecDeque<VecDeque<Box<Texts>>>,
}

impl Round {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Adds a question.
    pub fn push(&mut self, texts: Box<Texts>) {
        let is_its = |own: &&mut VecDeque<Box<Texts>>| {
            own.front()
                .is_some_and(|other| other.client == texts.client)
        };
        match self.clients.iter_mut().find(is_its) {
            Some(own) => own.push_back(texts),
            None => self.clients.push_back(VecDeque::from([texts])),
        }
    }

    /// The question whose turn it is.
    pub fn current(&mut self) -> Option<&mut Texts> {
        Some(self.clients.front_mut()?.front_mut()?)
    }

    /// Gives the turn on.
    pub fn next_turn(&mut self) {
        if let Some(mut own) = self.clients.pop_front() {
            own.rotate_left(1);
            self.clients.push_back(own);
        }
    }

    /// Takes the current question out; the turn goes on.
    pub fn end(&mut self) -> Option<Box<Texts>> {
        let mut own = self.clients.pop_front()?;
        let ended = own.pop_front();
        if !own.is_empty() {
            self.clients.push_back(own);
        }
        ended
    }

    /// Takes out all questions that `gone` points at.
    pub fn remove(&mut self, mut gone: impl FnMut(&Texts) -> bool) -> Vec<Box<Texts>> {
        let mut removed = Vec::new();
        for own in &mut self.clients {
            let (out, kept) = own.drain(..).partition(|texts| gone(texts));
            removed.extend::<VecDeque<Box<Texts>>>(out);
            *own = kept;
        }
        self.clients.retain(|own| !own.is_empty());
        removed
    }
}

/// Of length 1, so that a product of two is their cosine. What has no direction stays zero.
fn normalised(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector
        .iter()
        .map(|number| f64::from(*number).powi(2))
        .sum::<f64>()
        .sqrt();
    for number in &mut vector {
        let unit = f64::from(*number) / length;
        #[expect(clippy::cast_possible_truncation, reason = "between -1 and 1")]
        let unit = unit as f32;
        *number = if unit.is_finite() { unit } else { 0.0 };
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Embeddings of tokens are (token, 1), (token, 0), …; read in chunks of a size.
    fn embed(texts: &[&[u32]], pooling: Pooling, chunk: usize) -> Vec<Vec<f32>> {
        let tokens = |text: &&[u32]| text.iter().copied().map(Token).collect();
        let texts = texts.iter().map(tokens).collect();
        let mut texts = Texts::new((1, "test".into()), texts, None, Arc::default());
        while !texts.is_done() {
            let (tokens, position) = texts.next_chunk(chunk);
            assert!(!tokens.is_empty());
            let embed = |(at, token): (usize, &Token)| {
                let first = position == 0 && at == 0;
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let token = token.0 as f32;
                vec![token, if first { 1.0 } else { 0.0 }]
            };
            let embeddings: Vec<Vec<f32>> = tokens.iter().enumerate().map(embed).collect();
            texts.take(pooling, embeddings.iter().map(Vec::as_slice));
        }
        texts.finish().vectors
    }

    fn unit(x: f32, y: f32) -> Vec<f32> {
        normalised(vec![x, y])
    }

    #[test]
    fn chunks_do_not_change_what_is_pooled() {
        let texts: [&[u32]; 2] = [&[3, 5, 10], &[7]];
        for chunk in 1..5 {
            assert_eq!(
                embed(&texts, Pooling::Mean, chunk),
                [unit(18.0, 1.0), unit(7.0, 1.0)]
            );
            assert_eq!(
                embed(&texts, Pooling::Cls, chunk),
                [unit(3.0, 1.0), unit(7.0, 1.0)]
            );
            assert_eq!(
                embed(&texts, Pooling::Last, chunk),
                [unit(10.0, 0.0), unit(7.0, 1.0)]
            );
        }
    }

    #[test]
    fn clients_take_turns_whatever_each_of_them_sends() {
        let mut round = Round::default();
        for (id, client, texts) in [(1, "a", 2), (2, "a", 1), (3, "a", 1), (4, "b", 2)] {
            let texts = vec![vec![Token(0)]; texts];
            let texts = Texts::new((id, client.to_owned()), texts, None, Arc::default());
            round.push(Box::new(texts));
        }
        let mut order = Vec::new();
        while let Some(texts) = round.current() {
            order.push(texts.id);
            texts.take(Pooling::Last, std::iter::once(&[1.0][..]));
            if texts.is_done() {
                round.end();
            } else {
                round.next_turn();
            }
        }
        assert_eq!(order, [1, 4, 2, 4, 3, 1]);
        assert!(round.is_empty());
    }

    #[test]
    fn who_left_or_is_late_has_no_turn() {
        let mut round = Round::default();
        let now = Instant::now();
        let left = Arc::new(AtomicBool::new(true));
        for (id, deadline, cancelled) in [
            (1, Some(now), Arc::default()),
            (2, None, left),
            (
                3,
                now.checked_add(std::time::Duration::from_secs(1)),
                Arc::default(),
            ),
        ] {
            let texts = Texts::new((id, "a".into()), vec![vec![Token(0)]], deadline, cancelled);
            round.push(Box::new(texts));
        }
        let gone = round.remove(|texts| texts.is_late(now) || texts.is_cancelled());
        assert_eq!(
            gone.iter().map(|texts| texts.id).collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(round.current().map(|texts| texts.id), Some(3));
    }

    #[test]
    fn a_vector_without_direction_is_zero() {
        assert_eq!(normalised(vec![0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(normalised(vec![f32::NAN, 1.0]), [0.0, 0.0]);
    }
}
