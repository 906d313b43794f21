//! Passes over a whole vocabulary's logits.
//!
//! The logits are seen in chunks. One pass notes the maximum of each, and after that only chunks whose maximum is large
//! enough are looked into: for the usual settings a hundredth of the vocabulary. Penalised logits are laid over the
//! chunks that they fall into, by copying just those, so nothing else needs to know about penalties.
//!
//! The inner loops run over arrays of constant size without branches, for the compiler to turn into vector instructions.

use std::cmp::Ordering;

/// Logits of a chunk: large enough that the maxima are few, small enough that looking into a chunk is cheap.
pub(super) const CHUNK: usize = 64;
/// Logits treated as one: a vector register, or a few.
const LANES: usize = 16;

type Chunk = [f32; CHUNK];

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) logit: f32,
    pub(super) id: u32,
}

/// What the passes find, and memory that is used again for each token.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    /// Each chunk's maximum.
    maxima: Vec<f32>,
    /// Each chunk's sum of exponentials.
    sums: Vec<f32>,
    /// Chunks that differ from the logits, in ascending order: those with penalised tokens, and the last one if it had to
    /// be filled up.
    patches: Vec<Patch>,
    ranking: Vec<f32>,
}

#[derive(Clone, Debug)]
struct Patch {
    chunk: usize,
    logits: Chunk,
}

impl Scan {
    /// Lays the adjusted logits, given in ascending order of index, over the others; returns the maximum (−∞ if there is
    /// none). Everything else is about the logits of the latest call.
    pub(super) fn begin(
        &mut self,
        logits: &[f32],
        adjusted: impl Iterator<Item = (usize, f32)>,
    ) -> f32 {
        self.patches.clear();
        let (whole, rest) = logits.as_chunks();
        for (index, logit) in adjusted {
            self.patch(index / CHUNK, logits)[index % CHUNK] = logit;
        }
        if !rest.is_empty() {
            self.patch(whole.len(), logits);
        }
        each_chunk(whole, &self.patches, &mut self.maxima, |chunk, _| {
            maximum(chunk)
        });
        join(lanes(&self.maxima, f32::NEG_INFINITY, larger), larger)
    }

    /// The first id with this logit, which must be the maximum.
    pub(super) fn first_at(&self, logits: &[f32], max: f32) -> u32 {
        let chunk = self.maxima.iter().position(|&maximum| maximum >= max);
        let chunk = chunk.unwrap_or_default();
        let within = self
            .chunk(logits, chunk)
            .iter()
            .position(|&logit| logit >= max);
        id(chunk, within.unwrap_or_default())
    }

    /// A logit that at least `k` tokens reach, and not many more; `None` if there are too few chunks to tell.
    pub(super) fn floor_of(&mut self, k: usize) -> Option<f32> {
        // k chunks with such a maximum hold k such tokens.
        let kth = k.checked_sub(1).filter(|&kth| kth < self.maxima.len())?;
        self.ranking.clone_from(&self.maxima);
        let (_, floor, _) = self
            .ranking
            .select_nth_unstable_by(kth, |a, b| b.total_cmp(a));
        Some(floor.max(f32::MIN))
    }

    /// Replaces `kept` by the tokens whose logits are not below `floor` (a number), in order of id.
    pub(super) fn collect(&self, logits: &[f32], floor: f32, kept: &mut Vec<Candidate>) {
        kept.clear();
        for (chunk, &maximum) in self.maxima.iter().enumerate() {
            if maximum < floor {
                continue;
            }
            for (within, &logit) in self.chunk(logits, chunk).iter().enumerate() {
                if logit >= floor {
                    kept.push(Candidate {
                        logit,
                        id: id(chunk, within),
                    });
                }
            }
        }
    }

    /// The number of tokens whose logits are not below `floor`.
    pub(super) fn count(&mut self, logits: &[f32], floor: f32) -> f64 {
        self.total(logits, floor, |chunk| {
            let count = |n, logit| if logit >= floor { n + 1.0 } else { n };
            join(lanes(chunk, 0.0, count), |a, b| a + b)
        })
    }

    /// Adds up `exp((logit - max) * scale)` of all tokens whose logits are not below `floor`.
    pub(super) fn mass(&mut self, logits: &[f32], max: f32, scale: f32, floor: f32) -> f64 {
        self.total(logits, floor, |chunk| {
            let add = |sum, logit| {
                // Computed for all, so that there is no branch.
                let weight = exp((logit - max) * scale);
                sum + if logit >= floor { weight } else { 0.0 }
            };
            join(lanes(chunk, 0.0, add), |a, b| a + b)
        })
    }

    /// Sums `of` over the chunks in which something reaches `floor`.
    fn total(&mut self, logits: &[f32], floor: f32, of: impl Fn(&Chunk) -> f32) -> f64 {
        let (whole, _) = logits.as_chunks();
        let (maxima, patches) = (&self.maxima, &self.patches);
        let of = |chunk: &Chunk, index: usize| {
            if maxima[index] >= floor {
                of(chunk)
            } else {
                0.0
            }
        };
        each_chunk(whole, patches, &mut self.sums, of);
        self.sums.iter().map(|&sum| f64::from(sum)).sum()
    }

    /// The chunks' parts of the latest [`Scan::mass`].
    pub(super) fn chunk_sums(&self) -> impl Iterator<Item = f32> + '_ {
        self.sums.iter().copied()
    }

    /// The chunk as it is with penalties; what a last chunk lacks is −∞.
    pub(super) fn chunk<'a>(&'a self, logits: &'a [f32], chunk: usize) -> &'a Chunk {
        match self
            .patches
            .binary_search_by_key(&chunk, |patch| patch.chunk)
        {
            Ok(at) => &self.patches[at].logits,
            Err(_) => &logits.as_chunks().0[chunk],
        }
    }

    /// The copy of a chunk, made if it is not there; no chunk before the last patched one may be asked for.
    fn patch(&mut self, chunk: usize, logits: &[f32]) -> &mut Chunk {
        if self.patches.last().is_none_or(|patch| patch.chunk != chunk) {
            let mut copy = [f32::NEG_INFINITY; CHUNK];
            let rest = logits.get(chunk * CHUNK..).unwrap_or_default();
            for (copy, logit) in copy.iter_mut().zip(rest) {
                *copy = *logit;
            }
            self.patches.push(Patch {
                chunk,
                logits: copy,
            });
        }
        let last = self.patches.len() - 1;
        &mut self.patches[last].logits
    }
}

/// Rank: larger logit first, then lower id.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "what sorting functions call"
)]
pub(super) fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    let logits = b.logit.partial_cmp(&a.logit);
    logits.unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// e^x for x ≤ 0, to about a millionth; 1 for larger x, 0 for NaN and where the result would be no normal number.
///
/// Our own because the library's does not become vector instructions, and one function for all sums and draws keeps them
/// consistent with each other.
pub(super) fn exp(x: f32) -> f32 {
    /// Below this the scale would be no normal number.
    const LOWEST: f32 = -87.0;
    /// Adding this rounds to an integer, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts: the first has so few bits that multiples of it are exact.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let is_normal = x > LOWEST;
    let x = if is_normal { x } else { LOWEST };
    let x = if x < 0.0 { x } else { 0.0 };
    // e^x = 2^n · e^r with |r| ≤ ln 2 / 2, where six terms of the series are enough.
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2.0 - n * LN_2.1;
    let series = 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    // 2^n by its exponent bits; the rounding constant's own bits are shifted out.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if is_normal { series * power } else { 0.0 }
}

/// Applies `of` to each chunk, as it is with penalties, and its number.
fn each_chunk(
    whole: &[Chunk],
    patches: &[Patch],
    out: &mut Vec<f32>,
    of: impl Fn(&Chunk, usize) -> f32,
) {
    out.clear();
    out.extend(
        whole
            .iter()
            .enumerate()
            .map(|(index, chunk)| of(chunk, index)),
    );
    for patch in patches {
        let value = of(&patch.logits, patch.chunk);
        match out.get_mut(patch.chunk) {
            Some(slot) => *slot = value,
            // The last chunk, filled up.
            None => out.push(value),
        }
    }
}

fn maximum(chunk: &Chunk) -> f32 {
    join(lanes(chunk, f32::NEG_INFINITY, larger), larger)
}

/// Folds each lane on its own, which is what vector registers do.
fn lanes(values: &[f32], start: f32, step: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut lanes = [start; LANES];
    let (groups, rest) = values.as_chunks::<LANES>();
    for group in groups {
        for (lane, &value) in lanes.iter_mut().zip(group) {
            *lane = step(*lane, value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, value);
    }
    lanes
}

/// Joins the lanes to one, halving their number each time.
fn join(mut lanes: [f32; LANES], step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = step(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The larger one; `a` if `b` is NaN.
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

fn id(chunk: usize, within: usize) -> u32 {
    u32::try_from(chunk * CHUNK + within).unwrap_or(u32::MAX)
}
