//! A long run as a picture: an SVG file that any browser shows, without a script or a font of its own.

use super::sustained::{Sample, Sustained};
use std::fmt::Write as _;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 70.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 52.0;
/// Lines across.
const LINES: u32 = 5;

/// Colours that differ for people who see no red or no green, and in grey.
const SPEED: &str = "#0072b2";
const HEAT: &str = "#d55e00";
const CLOCK: &str = "#999999";
const GREY: &str = "#555555";

/// The chart of a run. `title` is a stranger's text.
pub fn svg(title: &str, run: &Sustained) -> String {
    let mut chart = Chart::of(run);
    chart.head(title, run);
    chart.grid();
    chart.curves(&run.samples);
    chart.legend();
    chart.svg.push_str("</svg>\n");
    chart.svg
}

struct Chart {
    svg: String,
    /// Seconds across.
    end: f64,
    speeds: Axis,
    /// Where temperatures are known.
    degrees: Option<Axis>,
    /// Where clocks are.
    clocks: Option<Axis>,
}

impl Chart {
    fn of(run: &Sustained) -> Self {
        let samples = run.samples.iter();
        let speeds = samples.clone().map(|sample| sample.tokens_per_second);
        let degrees = samples.clone().filter_map(|sample| sample.celsius);
        let clocks = samples
            .flat_map(|sample| sample.mhz.iter().flatten())
            .copied();
        Self {
            svg: format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
                 <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
            ),
            end: run
                .samples
                .last()
                .map_or(1.0, |sample| sample.seconds)
                .max(1.0),
            speeds: Axis::up_to(speeds.fold(0.0, f64::max)),
            degrees: degrees.reduce(f64::max).map(Axis::up_to),
            clocks: clocks.reduce(f64::max).map(Axis::up_to),
        }
    }

    fn head(&mut self, title: &str, run: &Sustained) {
        self.label((LEFT, 22.0), "start", "black", title);
        self.label((LEFT, 42.0), "start", GREY, &run.to_string());
    }

    /// Lines across, with the numbers of all axes.
    fn grid(&mut self) {
        for number in 0..=LINES {
            let share = f64::from(number) / f64::from(LINES);
            let y = height(share);
            let _ = writeln!(
                self.svg,
                "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"#dddddd\"/>",
                WIDTH - RIGHT
            );
            self.label((LEFT - 8.0, y + 4.0), "end", SPEED, &self.speeds.at(share));
            if let Some(degrees) = &self.degrees {
                self.label(
                    (WIDTH - RIGHT + 8.0, y + 4.0),
                    "start",
                    HEAT,
                    &degrees.at(share),
                );
            }
            let minutes = format!("{:.1}", self.end * share / 60.0);
            let at = (
                LEFT + share * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM + 20.0,
            );
            self.label(at, "middle", GREY, minutes.trim_end_matches(".0"));
        }
    }

    fn curves(&mut self, samples: &[Sample]) {
        if let Some(axis) = &self.clocks {
            let clusters = samples.iter().map(|sample| sample.mhz.len()).max();
            for cluster in 0..clusters.unwrap_or(0) {
                self.svg += &self.curve(samples, CLOCK, &|sample| {
                    Some(axis.share((*sample.mhz.get(cluster)?)?))
                });
            }
        }
        if let Some(axis) = &self.degrees {
            self.svg += &self.curve(samples, HEAT, &|sample| Some(axis.share(sample.celsius?)));
        }
        let axis = &self.speeds;
        self.svg += &self.curve(samples, SPEED, &|sample| {
            Some(axis.share(sample.tokens_per_second))
        });
    }

    fn legend(&mut self) {
        let foot = HEIGHT - 10.0;
        self.label((LEFT, foot), "start", SPEED, "tokens/s (left)");
        if self.degrees.is_some() {
            self.label((LEFT + 130.0, foot), "start", HEAT, "CPU in °C (right)");
        }
        if let Some(clocks) = &self.clocks {
            let text = format!("clocks of the clusters (top: {} MHz)", clocks.at(1.0));
            self.label((LEFT + 270.0, foot), "start", CLOCK, &text);
        }
        self.label((WIDTH - RIGHT, foot), "end", GREY, "minutes");
    }

    /// A line through what is known; it is broken where nothing is.
    fn curve(
        &self,
        samples: &[Sample],
        colour: &str,
        share: &dyn Fn(&Sample) -> Option<f64>,
    ) -> String {
        let mut path = String::new();
        let mut down = false;
        for sample in samples {
            let Some(share) = share(sample) else {
                down = false;
                continue;
            };
            let x = LEFT + (sample.seconds / self.end).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
            let step = if down { 'L' } else { 'M' };
            let _ = write!(path, "{step}{x:.1} {:.1}", height(share));
            down = true;
        }
        if path.is_empty() {
            return path;
        }
        format!("<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n")
    }

    fn label(&mut self, (x, y): (f64, f64), anchor: &str, colour: &str, text: &str) {
        let _ = writeln!(
            self.svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{}</text>",
            escaped(text)
        );
    }
}

/// From 0 to a round number.
struct Axis {
    most: f64,
}

impl Axis {
    /// The least of 1, 2, 2.5, 5 and 10 times a power of ten that has room for it.
    fn up_to(number: f64) -> Self {
        let number = if number.is_finite() {
            number.max(1e-3)
        } else {
            1.0
        };
        let power = 10_f64.powf(number.log10().floor());
        let round = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
        let most = round.into_iter().find(|most| *most >= number);
        Self {
            most: most.unwrap_or(number),
        }
    }

    fn share(&self, number: f64) -> f64 {
        (number / self.most).clamp(0.0, 1.0)
    }

    fn at(&self, share: f64) -> String {
        let number = self.most * share;
        if self.most < 5.0 {
            format!("{number:.2}")
        } else {
            format!("{number:.0}")
        }
    }
}

fn height(share: f64) -> f64 {
    HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars().filter(|letter| !letter.is_control()) {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::sustained::tests::warming;
    use super::*;

    #[test]
    fn a_run_is_drawn() {
        let run = Sustained::of(warming(2)).expect("samples");
        insta::assert_snapshot!(svg("some-1b <on a phone>", &run));
    }

    #[test]
    fn what_is_not_known_is_not_drawn() {
        let mut samples = warming(2);
        for sample in &mut samples {
            (sample.celsius, sample.mhz) = (None, Vec::new());
        }
        let run = Sustained::of(samples).expect("samples");
        let svg = svg("a", &run);
        assert_eq!(svg.matches("stroke-width").count(), 1, "the speed alone");
        assert!(!svg.contains("°C") && !svg.contains("MHz"));
    }

    #[test]
    fn a_gap_is_a_gap() {
        let mut samples = warming(1);
        samples[2].celsius = None;
        let run = Sustained::of(samples).expect("samples");
        let chart = svg("a", &run);
        let heat = chart
            .lines()
            .find(|line| line.starts_with("<path d=\"M") && line.contains(HEAT))
            .expect("a curve");
        assert_eq!(heat.matches('M').count(), 2);
    }

    #[test]
    fn axes_end_at_round_numbers() {
        let most = [0.0, 0.7, 1.0, 1.2, 11.0, 21.0, 26.0, 99.0, 2850.0, f64::NAN]
            .map(|number| Axis::up_to(number).most);
        let expected = [0.001, 1.0, 1.0, 2.0, 20.0, 25.0, 50.0, 100.0, 5000.0, 1.0];
        for (most, expected) in most.into_iter().zip(expected) {
            assert!(
                (most / expected - 1.0).abs() < 1e-9,
                "{most} is not {expected}"
            );
        }
    }
}
