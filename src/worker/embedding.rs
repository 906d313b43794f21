//! Embeddings: one text after another, in chunks between the steps of answers, so that a long text holds up no stream.
//!
//! Every token's embedding comes from the decoder; a text's is made of them here, because llama.cpp's own pooling is wrong for a
//! text that is decoded in parts. Knows no decoder and no channel.

use super::decoder::Position;
use crate::engine::wire::RequestId;
use crate::engine::{Embedded, Pooling, Token};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The texts of one question, and what is known of their embeddings.
pub struct Texts {
    /// The question's number on the wire.
    pub id: RequestId,
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
    pub fn new(id: RequestId, texts: Vec<Vec<Token>>, cancelled: Arc<AtomicBool>) -> Self {
        Self {
            id,
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
        let mut texts = Texts::new(1, texts, Arc::default());
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
    fn a_vector_without_direction_is_zero() {
        assert_eq!(normalised(vec![0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(normalised(vec![f32::NAN, 1.0]), [0.0, 0.0]);
    }
}
