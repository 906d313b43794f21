//! A long run: how speed, temperature and clocks change while a phone gets warm. Pure, but for [`Sample::take`].

use super::median;
use crate::device::{Topology, heat};
use serde::Serialize;
use std::fmt;

/// What a moment of a long run was like.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds since the beginning, at the end of the answer that was measured.
    pub seconds: f64,
    /// Its tokens per second.
    pub tokens_per_second: f64,
    /// Temperature of the hottest part of the CPU, if the system tells.
    pub celsius: Option<f64>,
    /// Clock of each cluster, fastest cluster first, in MHz.
    pub mhz: Vec<Option<f64>>,
}

impl Sample {
    /// Reads what goes with a speed that was just measured.
    pub fn take(seconds: f64, tokens_per_second: f64, topology: &Topology) -> Self {
        Self {
            seconds,
            tokens_per_second,
            celsius: heat::cpu_celsius(),
            mhz: heat::clocks(topology),
        }
    }
}

/// A long run and what it comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sustained {
    /// In order.
    pub samples: Vec<Sample>,
    /// Median of the first minute (or of the first half of a shorter run).
    pub first: Phase,
    /// Median of the last minute (or of the second half).
    pub last: Phase,
    /// Speed of the last minute as a share of the first one's.
    pub kept: f64,
}

/// Medians of a part of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Which minute, from 1.
    pub minute: u32,
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// Temperature.
    pub celsius: Option<f64>,
    /// Clock of each cluster.
    pub mhz: Vec<Option<f64>>,
}

impl Sustained {
    /// Of at least one sample.
    pub fn of(samples: Vec<Sample>) -> Option<Self> {
        let end = samples.last()?.seconds;
        let part = 60.0_f64.min(end / 2.0);
        let early: Vec<&Sample> = samples
            .iter()
            .filter(|sample| sample.seconds <= part)
            .collect();
        let late: Vec<&Sample> = samples
            .iter()
            .filter(|sample| sample.seconds > end - part)
            .collect();
        // With long answers the first one may end behind the first minute.
        let early = if early.is_empty() {
            vec![samples.first()?]
        } else {
            early
        };
        let late = if late.is_empty() {
            vec![samples.last()?]
        } else {
            late
        };
        let (first, last) = (phase(&early), phase(&late));
        let kept = last.tokens_per_second / first.tokens_per_second.max(f64::MIN_POSITIVE);
        Some(Self {
            samples,
            first,
            last,
            kept,
        })
    }
}

impl fmt::Display for Sustained {
    /// `minute 30 has 61 % of the speed of minute 1`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.kept * 100.0;
        match (self.first.minute, self.last.minute) {
            (first, last) if first == last => {
                write!(
                    f,
                    "its end has {percent:.0} % of the speed of its beginning"
                )
            }
            (first, last) => write!(
                f,
                "minute {last} has {percent:.0} % of the speed of minute {first}"
            ),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "minutes of a run that somebody waited for"
)]
fn phase(samples: &[&Sample]) -> Phase {
    let of = |number: &dyn Fn(&Sample) -> Option<f64>| {
        let numbers: Vec<f64> = samples.iter().filter_map(|sample| number(sample)).collect();
        (!numbers.is_empty()).then(|| median(&numbers))
    };
    let clusters = samples.iter().map(|sample| sample.mhz.len()).max();
    let end = samples.last().map_or(0.0, |sample| sample.seconds);
    Phase {
        minute: (end / 60.0).ceil().max(1.0) as u32,
        tokens_per_second: of(&|sample| Some(sample.tokens_per_second)).unwrap_or(0.0),
        celsius: of(&|sample| sample.celsius),
        mhz: (0..clusters.unwrap_or(0))
            .map(|cluster| of(&|sample| *sample.mhz.get(cluster)?))
            .collect(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A phone that gets warm: from 20 to 12 tokens a second in `minutes`, a sample every 10 seconds.
    pub(crate) fn warming(minutes: u32) -> Vec<Sample> {
        let count = minutes * 6;
        let sample = |index: u32| {
            let share = f64::from(index) / f64::from(count);
            Sample {
                seconds: f64::from(index) * 10.0,
                tokens_per_second: 20.0 - 8.0 * share,
                celsius: Some(35.0 + 30.0 * share),
                mhz: vec![Some(2800.0 - 1000.0 * share), None],
            }
        };
        (1..=count).map(sample).collect()
    }

    #[test]
    fn the_first_minute_is_compared_with_the_last() {
        let run = Sustained::of(warming(30)).expect("samples");
        assert_eq!((run.first.minute, run.last.minute), (1, 30));
        assert!(
            (run.first.tokens_per_second - 19.84).abs() < 0.01,
            "{run:?}"
        );
        assert!((run.last.tokens_per_second - 12.11).abs() < 0.01);
        assert!((run.kept - 0.61).abs() < 0.01);
        assert_eq!(
            run.to_string(),
            "minute 30 has 61 % of the speed of minute 1"
        );
        assert_eq!(run.last.mhz.len(), 2);
        assert!(run.last.mhz[0].is_some_and(|mhz| mhz < 1820.0) && run.last.mhz[1].is_none());
    }

    #[test]
    fn short_runs_are_cut_in_half_and_none_has_no_result() {
        let run = Sustained::of(warming(1)).expect("samples");
        assert!(run.first.tokens_per_second > run.last.tokens_per_second);
        assert_eq!(
            run.to_string(),
            "its end has 77 % of the speed of its beginning"
        );
        let one = Sustained::of(warming(1)[..1].to_vec()).expect("a sample");
        assert_eq!(one.kept.to_string(), "1");
        assert_eq!(Sustained::of(Vec::new()), None);
    }
}
