//! Top-k, top-p and min-p: which tokens may be drawn at all.
//!
//! Each of the three keeps a beginning of the same ranking (larger logit first, then lower id). So we never rank the
//! vocabulary: a floor is found that surely lets the survivors through, the few tokens above it are collected, and only
//! those are thinned out exactly.

use super::scan::{Candidate, Scan, by_rank, exp};
use crate::engine::Sampling;

/// How far below the largest logit we look for the tokens of top-p at first: unless the distribution is flat, what is
/// further below has next to no probability.
const FIRST_DEPTH: f32 = 8.0;
/// Beyond this depth nothing has a weight, and everything is collected.
const LAST_DEPTH: f32 = 80.0;
/// A search for a good depth ends within this distance of the best one …
const DEPTH_STEP: f32 = 0.5;
/// … or where so few tokens are collected that searching would cost more than ranking them.
const FEW: f64 = 2048.0;

/// The truncating stages, each switched off by its largest value.
#[derive(Clone, Debug)]
pub(super) struct Truncation {
    top_k: usize,
    top_p: f64,
    /// How far below the largest logit min-p still lets tokens through: 0 or more.
    min_p_depth: f32,
}

impl Truncation {
    pub(super) fn new(sampling: &Sampling) -> Self {
        let Sampling {
            top_k,
            top_p,
            min_p,
            ..
        } = *sampling;
        Self {
            top_k: match top_k {
                0 => usize::MAX,
                k => k as usize,
            },
            top_p: if top_p < 1.0 {
                f64::from(top_p.max(0.0))
            } else {
                f64::INFINITY
            },
            min_p_depth: if min_p > 0.0 {
                (-min_p.ln()).max(0.0)
            } else {
                f32::INFINITY
            },
        }
    }

    /// Whether all tokens of a vocabulary of this size survive.
    pub(super) fn is_off(&self, n_vocab: usize) -> bool {
        self.top_k >= n_vocab && self.top_p.is_infinite() && self.min_p_depth.is_infinite()
    }

    /// Puts the survivors into `kept`, in order of id: at least one, where the scan found `max` to be the largest logit.
    pub(super) fn survivors(
        &self,
        scan: &mut Scan,
        logits: &[f32],
        max: f32,
        kept: &mut Vec<Candidate>,
    ) {
        let top_p = self.top_p;
        // Also where min-p is off, −∞ does not survive.
        let lowest = (max - self.min_p_depth).max(f32::MIN);
        if self.top_k < logits.len() {
            collect_top_k(scan, logits, max, self.top_k, kept);
            if top_p.is_finite() {
                let total: f64 = kept.iter().map(|&kept| weight(kept, max)).sum();
                nucleus(kept, max, top_p * total);
            }
            kept.retain(|kept| kept.logit >= lowest);
        } else if top_p.is_finite() {
            let needed = top_p * scan.mass(logits, max, 1.0, f32::MIN);
            let enough = |scan: &mut Scan, floor| scan.mass(logits, max, 1.0, floor) >= needed;
            // What min-p will drop in any case need not be collected.
            let floor = search(scan, logits, max, lowest, enough);
            scan.collect(logits, floor, kept);
            nucleus(kept, max, needed);
        } else {
            scan.collect(logits, lowest, kept);
        }
        kept.sort_unstable_by_key(|kept| kept.id);
    }
}

/// Collects the k tokens that rank first.
fn collect_top_k(scan: &mut Scan, logits: &[f32], max: f32, k: usize, kept: &mut Vec<Candidate>) {
    let floor = scan.floor_of(k).unwrap_or_else(|| {
        #[expect(clippy::cast_precision_loss, reason = "below 2^32")]
        let enough = |scan: &mut Scan, floor| scan.count(logits, floor) >= k as f64;
        search(scan, logits, max, f32::MIN, enough)
    });
    scan.collect(logits, floor, kept);
    if k < kept.len() {
        kept.select_nth_unstable_by(k, by_rank);
        kept.truncate(k);
    }
}

/// A floor, not below `lowest`, above which there are `enough` tokens and not many more; `lowest` if there never are.
fn search(
    scan: &mut Scan,
    logits: &[f32],
    max: f32,
    lowest: f32,
    enough: impl Fn(&mut Scan, f32) -> bool,
) -> f32 {
    let mut depth = FIRST_DEPTH;
    // Too shallow, and deep enough.
    let (mut shallow, mut deep) = (0.0, f32::INFINITY);
    while deep - shallow > DEPTH_STEP {
        let floor = max - depth;
        if enough(scan, floor.max(lowest)) {
            if scan.count(logits, floor.max(lowest)) <= FEW {
                return floor.max(lowest);
            }
            deep = depth;
        } else if depth > LAST_DEPTH || floor <= lowest {
            return lowest;
        } else {
            shallow = depth;
        }
        depth = if deep.is_finite() {
            shallow.midpoint(deep)
        } else {
            depth * 2.0
        };
    }
    (max - deep).max(lowest)
}

/// Keeps the shortest beginning of the ranking whose weights together reach `needed`, or everything.
///
/// Halving what is undecided costs time in proportion to the number of candidates; sorting them would cost more.
fn nucleus(kept: &mut Vec<Candidate>, max: f32, needed: f64) {
    let mut mass_before = 0.0;
    // The last one kept is in `low..high`.
    let (mut low, mut high) = (0, kept.len());
    while high - low > 1 {
        let middle = low.midpoint(high);
        kept[low..high].select_nth_unstable_by(middle - low, by_rank);
        let mass: f64 = kept[low..middle]
            .iter()
            .map(|&kept| weight(kept, max))
            .sum();
        if mass_before + mass >= needed {
            high = middle;
        } else {
            mass_before += mass;
            low = middle;
        }
    }
    kept.truncate(high);
}

/// The candidate's share of the probability, on a scale on which the likeliest token has 1.
fn weight(candidate: Candidate, max: f32) -> f64 {
    f64::from(exp(candidate.logit - max))
}
