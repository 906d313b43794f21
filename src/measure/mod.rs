//! Measuring: what `pocket-llm bench` and `pocket-llm tune` find out, and how it is told.
//!
//! [`subject`] drives a loaded model through the program's own worker process and handle, so that the figures are those that users get;
//! [`http`] does so through the door. What follows from figures is computed from plain data and tested without a model: how near
//! decoding comes to what memory allows and what would help ([`report`], [`advice`]), which team of threads is best ([`search`]),
//! and what a long run looks like ([`sustained`], [`chart`]). [`render`] prints it all.

pub mod subject;

pub mod http;

pub mod report;

pub mod advice;

pub mod sustained;

pub mod chart;

pub mod render;

pub mod search;

/// The middle one of some numbers, or the mean of the two in the middle; 0 of none.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(median(&[]).abs() < f64::EPSILON);
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_string(), "2");
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_string(), "2.5");
    }
}
