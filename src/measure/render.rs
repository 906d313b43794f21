//! A report for the terminal, as Markdown, as CSV and as JSON.

use super::report::{Report, Test, best};
use super::sustained::Sample;
use super::{median, report::MachineFacts};
use crate::device::{Placement, Team};
use crate::models::memory::Bytes;
use clap::ValueEnum;
use std::fmt::Write as _;

/// Rows of a long run that are shown; a longer one shows every other minute, or fewer.
const MOST_MINUTES: usize = 30;

/// How a report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For the terminal
    #[default]
    Table,
    /// For a page or an issue
    Markdown,
    /// Everything, for programs
    Json,
    /// One figure a line, for spreadsheets
    Csv,
}

/// The report as text; ends with a line's end.
pub fn render(report: &Report, output: Output) -> String {
    match output {
        Output::Table => blocks(report)
            .iter()
            .map(Block::table)
            .collect::<Vec<_>>()
            .join("\n"),
        Output::Markdown => blocks(report)
            .iter()
            .map(Block::markdown)
            .collect::<Vec<_>>()
            .join("\n"),
        // Plain data, which is always JSON.
        Output::Json => format!("{:#}\n", serde_json::json!(report)),
        Output::Csv => csv(report),
    }
}

/// Bytes per second as people read them.
pub fn gigabytes(bytes_per_second: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let number = bytes_per_second as f64 / 1e9;
    format!("{number:.1} GB/s")
}

/// `4 threads on cores 4-7`
pub fn team(team: &Team) -> String {
    let s = if team.threads == 1 { "" } else { "s" };
    if team.cores.is_empty() {
        format!("{} thread{s}", team.threads)
    } else {
        format!("{} thread{s} on cores {}", team.threads, team.cores)
    }
}

/// All teams, those that are alike once.
pub fn placement(placement: &Placement) -> String {
    let Placement { one, few, many } = placement;
    if one == few && few == many {
        return team(one);
    }
    if few == many {
        return format!(
            "one answer {}; several, and prompts, {}",
            team(one),
            team(many)
        );
    }
    format!(
        "one answer {}; several {}; prompts {}",
        team(one),
        team(few),
        team(many)
    )
}

/// A part of what is shown.
enum Block {
    /// Names and what is said of them.
    Facts(Vec<(&'static str, String)>),
    /// The first column is text, the others are numbers.
    Table(Vec<&'static str>, Vec<Vec<String>>),
    /// Sentences.
    List(&'static str, Vec<String>),
}

impl Block {
    fn table(&self) -> String {
        let mut text = String::new();
        match self {
            Self::Facts(facts) => {
                for (name, fact) in facts {
                    line(&mut text, &format!("{name:<12} {fact}"));
                }
            }
            Self::Table(heads, rows) => {
                let heads: Vec<String> = heads.iter().map(ToString::to_string).collect();
                let width = |column: usize| {
                    let cells = std::iter::once(&heads)
                        .chain(rows)
                        .filter_map(|row| row.get(column));
                    cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
                };
                for row in std::iter::once(&heads).chain(rows) {
                    let cells = row.iter().enumerate().map(|(column, cell)| match column {
                        0 => format!("{cell:<0$}", width(0)),
                        _ => format!("{cell:>0$}", width(column)),
                    });
                    line(&mut text, &cells.collect::<Vec<_>>().join("  "));
                }
            }
            Self::List(title, sentences) => {
                for sentence in sentences {
                    line(&mut text, &format!("{title:<12} {sentence}"));
                }
            }
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        match self {
            Self::Facts(facts) => {
                for (name, fact) in facts {
                    line(&mut text, &format!("- {name}: {fact}"));
                }
            }
            Self::Table(heads, rows) => {
                line(&mut text, &format!("| {} |", heads.join(" | ")));
                let rules = vec!["---:"; heads.len().saturating_sub(1)].join(" | ");
                line(&mut text, &format!("| --- | {rules} |"));
                for row in rows {
                    let cells: Vec<String> =
                        row.iter().map(|cell| cell.replace('|', "\\|")).collect();
                    line(&mut text, &format!("| {} |", cells.join(" | ")));
                }
            }
            Self::List(title, sentences) => {
                for sentence in sentences {
                    line(&mut text, &format!("- {title}: {sentence}"));
                }
            }
        }
        text
    }
}

fn line(text: &mut String, content: &str) {
    text.push_str(content.trim_end());
    text.push('\n');
}

fn blocks(report: &Report) -> Vec<Block> {
    let mut blocks = vec![Block::Facts(facts(report))];
    if !report.tests.is_empty() {
        let heads = vec![
            "test",
            "tokens/s",
            "slowest to fastest",
            "of memory's limit",
        ];
        blocks.push(Block::Table(heads, report.tests.iter().map(test).collect()));
    }
    if !report.streams.is_empty() {
        let heads = vec!["answers at once", "tokens/s", "each", "first token"];
        let row = |streams: &super::subject::Streams| {
            vec![
                streams.answers.to_string(),
                speed(streams.tokens_per_second),
                speed(streams.each),
                format!("{:.0} ms", streams.first_token_ms),
            ]
        };
        blocks.push(Block::Table(
            heads,
            report.streams.iter().map(row).collect(),
        ));
    }
    if let Some(first) = &report.first_token {
        blocks.push(Block::Facts(vec![(
            "over HTTP",
            format!(
                "first token after {:.1} ms (engine alone {:.1} ms), {} prompt tokens",
                first.http_ms, first.engine_ms, first.prompt_tokens
            ),
        )]));
    }
    if let Some(run) = &report.sustained {
        let heads = vec!["minute", "tokens/s", "CPU", "clocks"];
        blocks.push(Block::Table(heads, minutes(&run.samples)));
        blocks.push(Block::Facts(vec![("kept", run.to_string())]));
    }
    if !report.advice.is_empty() {
        blocks.push(Block::List("advice", report.advice.clone()));
    }
    blocks
}

fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let (model, machine, run) = (&report.model, &report.machine, &report.run);
    let mut facts = vec![
        (
            "model",
            format!(
                "{}, {}, {}",
                model.name,
                model.quantisation,
                Bytes(model.file_bytes)
            ),
        ),
        ("cores", cores(machine)),
        ("CPU", features(machine)),
        (
            "computes on",
            format!("{} ({})", placement(&run.placement), run.reason),
        ),
        (
            "runs with",
            format!(
                "{} rows a step, KV cache in {}",
                run.batch_size, run.cache_type
            ),
        ),
    ];
    if !run.layouts.is_empty() {
        facts.push(("layouts", run.layouts.join(", ")));
    }
    if let Some(most) = best(&report.bandwidth) {
        let by_threads: Vec<String> = report
            .bandwidth
            .iter()
            .map(|measured| {
                format!(
                    "{} with {}",
                    gigabytes(measured.bytes_per_second),
                    threads(measured.threads)
                )
            })
            .collect();
        facts.push(("memory", by_threads.join(", ")));
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        let limit = most as f64 / model.bytes_per_token.max(1) as f64;
        facts.push((
            "a token",
            format!(
                "reads {} of weights: {} tokens/s at most",
                Bytes(model.bytes_per_token),
                speed(limit)
            ),
        ));
    }
    facts
}

fn threads(threads: u32) -> String {
    let s = if threads == 1 { "" } else { "s" };
    format!("{threads} thread{s}")
}

/// `8: Cortex-X3 at 2.9 GHz, 4-7: … ; 0-8 allowed`
fn cores(machine: &MachineFacts) -> String {
    let clusters = machine.clusters.iter().map(|cluster| {
        let mut text = cluster.cores.to_string();
        if let Some(design) = cluster.design {
            let _ = write!(text, " {design}");
        }
        if let Some(khz) = cluster.max_khz {
            #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
            let gigahertz = khz as f64 / 1e6;
            let _ = write!(text, " up to {gigahertz:.1} GHz");
        }
        if cluster.little {
            text.push_str(" (little)");
        }
        text
    });
    let mut text = clusters.collect::<Vec<_>>().join(", ");
    let allowed = &machine.allowed;
    let _ = write!(text, "; allowed: {}", allowed.cores);
    if let Some(quota) = allowed.quota {
        let _ = write!(text, ", of which a quota leaves {quota}");
    }
    text.trim_start_matches("; ").to_owned()
}

fn features(machine: &MachineFacts) -> String {
    let in_use = match machine.features_in_use.as_slice() {
        [] => "no extensions in use".into(),
        features => format!("uses {}", features.join(" ")),
    };
    let unused = machine
        .features
        .iter()
        .filter(|feature| machine.is_unused(feature));
    let unused: Vec<&str> = unused.copied().collect();
    if unused.is_empty() {
        in_use
    } else {
        format!("{in_use}; does not use {}", unused.join(" "))
    }
}

fn test(test: &Test) -> Vec<String> {
    let share = test.of_roofline();
    vec![
        test.name.clone(),
        speed(test.tokens_per_second),
        format!("{} to {}", speed(test.least), speed(test.most)),
        share.map_or_else(String::new, |share| format!("{:.0} %", share * 100.0)),
    ]
}

/// Minute by minute, medians; every n-th minute where there are many.
fn minutes(samples: &[Sample]) -> Vec<Vec<String>> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "minutes of a run that somebody waited for"
    )]
    let minute = |sample: &Sample| (sample.seconds / 60.0).ceil().max(1.0) as usize;
    let all: Vec<&[Sample]> = samples
        .chunk_by(|one, next| minute(one) == minute(next))
        .collect();
    let step = all.len().div_ceil(MOST_MINUTES).max(1);
    let last = all.len().saturating_sub(1);
    let shown = all.iter().enumerate();
    let shown = shown.filter(|(index, _)| index % step == 0 || *index == last);
    let row = |part: &[Sample]| {
        let of = |number: &dyn Fn(&Sample) -> Option<f64>| {
            let numbers: Vec<f64> = part.iter().filter_map(number).collect();
            (!numbers.is_empty()).then(|| median(&numbers))
        };
        let clusters = part.first().map_or(0, |sample| sample.mhz.len());
        let clocks = (0..clusters).filter_map(|cluster| of(&|sample| *sample.mhz.get(cluster)?));
        let clocks: Vec<String> = clocks.map(|mhz| format!("{mhz:.0}")).collect();
        vec![
            part.first().map_or(0, minute).to_string(),
            speed(of(&|sample| Some(sample.tokens_per_second)).unwrap_or(0.0)),
            of(&|sample| sample.celsius)
                .map_or_else(|| "not told".into(), |celsius| format!("{celsius:.0} °C")),
            if clocks.is_empty() {
                "not told".into()
            } else {
                format!("{} MHz", clocks.join(" "))
            },
        ]
    };
    shown.map(|(_, part)| row(part)).collect()
}

/// Three digits or more.
pub fn speed(tokens_per_second: f64) -> String {
    match tokens_per_second {
        ..9.995 => format!("{tokens_per_second:.2}"),
        ..999.5 => format!("{tokens_per_second:.1}"),
        _ => format!("{tokens_per_second:.0}"),
    }
}

/// A line of CSV: what, of what, its value and its unit.
struct Figure(&'static str, String, String, &'static str);

/// `what,name,value,unit`: figures only.
fn csv(report: &Report) -> String {
    let mut text = String::from("what,name,value,unit\n");
    let figures = of_machine(report).into_iter().chain(of_tests(report));
    for Figure(what, name, value, unit) in figures.chain(of_run(report)) {
        let _ = writeln!(
            text,
            "{what},\"{}\",{value},{unit}",
            name.replace('"', "\"\"")
        );
    }
    text
}

fn exact(number: f64) -> String {
    format!("{number:.3}")
}

fn of_machine(report: &Report) -> Vec<Figure> {
    let model = &report.model;
    let mut figures = vec![Figure(
        "reads",
        model.name.clone(),
        model.bytes_per_token.to_string(),
        "bytes/token",
    )];
    figures.extend(report.bandwidth.iter().map(|measured| {
        let value = measured.bytes_per_second.to_string();
        Figure("memory", threads(measured.threads), value, "bytes/s")
    }));
    figures
}

fn of_tests(report: &Report) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut add =
        |what, name: &str, value, unit| figures.push(Figure(what, name.into(), value, unit));
    for test in &report.tests {
        add(
            "speed",
            &test.name,
            exact(test.tokens_per_second),
            "tokens/s",
        );
        add("slowest", &test.name, exact(test.least), "tokens/s");
        add("fastest", &test.name, exact(test.most), "tokens/s");
        if let Some(share) = test.of_roofline() {
            add(
                "of memory's limit",
                &test.name,
                format!("{:.1}", share * 100.0),
                "%",
            );
        }
    }
    for streams in &report.streams {
        let name = format!("{} at once", streams.answers);
        add("speed", &name, exact(streams.tokens_per_second), "tokens/s");
        add("each", &name, exact(streams.each), "tokens/s");
        add("first token", &name, exact(streams.first_token_ms), "ms");
    }
    if let Some(first) = &report.first_token {
        add("first token", "HTTP", exact(first.http_ms), "ms");
        add("first token", "engine", exact(first.engine_ms), "ms");
    }
    figures
}

/// A long run: the names are seconds, those of clocks with the cluster's place.
fn of_run(report: &Report) -> Vec<Figure> {
    let mut figures = Vec::new();
    for sample in report.sustained.iter().flat_map(|run| &run.samples) {
        let name = format!("{:.1} s", sample.seconds);
        figures.push(Figure(
            "sustained",
            name.clone(),
            exact(sample.tokens_per_second),
            "tokens/s",
        ));
        let celsius = sample.celsius.map(|celsius| format!("{celsius:.1}"));
        figures.extend(celsius.map(|celsius| Figure("temperature", name.clone(), celsius, "°C")));
        let clocks = sample.mhz.iter().enumerate();
        figures.extend(clocks.filter_map(|(cluster, mhz)| {
            let name = format!("{name}, cluster {cluster}");
            Some(Figure("clock", name, format!("{:.0}", (*mhz)?), "MHz"))
        }));
    }
    figures
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::http::FirstToken;
    use super::super::report::{ModelFacts, Roofline, RunFacts};
    use super::super::subject::Streams;
    use super::super::sustained::{Sustained, tests::warming};
    use super::*;
    use crate::device::bandwidth::Bandwidth;
    use crate::device::placement::choose;
    use crate::device::topology::tests::Phone;
    use crate::device::{Allowed, Topology};
    use crate::engine::CacheType;

    /// What a Pixel 8 that does all it can might say. The figures are made up.
    pub(crate) fn report() -> Report {
        let topology = Topology::read(Phone::new("pixel-8").root());
        let allowed = Allowed {
            cores: topology.cores(),
            quota: None,
        };
        let choice = choose(&topology, &allowed);
        let roofline = |bytes: u64| Roofline {
            bytes_per_token: bytes,
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            tokens_per_second: 24e9 / bytes as f64,
        };
        Report {
            version: "0.0.0",
            model: ModelFacts {
                name: "some-1b".into(),
                quantisation: "Q4_0".into(),
                file_bytes: 1_600_000_000,
                parameters: 1_500_000_000,
                bytes_per_token: 1_500_000_000,
            },
            machine: MachineFacts::of(&topology, allowed, Some("armv8.6_2"), None),
            run: RunFacts {
                placement: Placement::of(&choice.team),
                reason: choice.why,
                batch_size: 128,
                cache_type: CacheType::F16,
                layouts: vec!["q4_0_4x8".into()],
            },
            bandwidth: vec![
                Bandwidth {
                    threads: 1,
                    bytes_per_second: 11_300_000_000,
                },
                Bandwidth {
                    threads: 5,
                    bytes_per_second: 24_000_000_000,
                },
            ],
            tests: [
                Test::of("pp512".into(), &[102.0, 100.0, 97.0], None),
                Test::of(
                    "tg64".into(),
                    &[12.5, 12.0, 11.0],
                    Some(roofline(1_500_000_000)),
                ),
                Test::of(
                    "tg64 @ d1024".into(),
                    &[11.0],
                    Some(roofline(1_530_000_000)),
                ),
            ]
            .into_iter()
            .flatten()
            .collect(),
            streams: vec![Streams {
                answers: 4,
                tokens_per_second: 30.0,
                each: 7.5,
                first_token_ms: 1234.5,
            }],
            first_token: Some(FirstToken {
                requests: 5,
                prompt_tokens: 32,
                http_ms: 352.1,
                engine_ms: 350.0,
            }),
            sustained: None,
            others: Some(0.02),
            advice: Vec::new(),
        }
    }

    #[test]
    fn a_report_is_a_table_markdown_and_csv() {
        let mut report = report();
        report.advice.push("a sentence".into());
        let all =
            [Output::Table, Output::Markdown, Output::Csv].map(|output| render(&report, output));
        insta::assert_snapshot!(all.join("\n=====\n"));
    }

    #[test]
    fn a_long_run_is_shown_minute_by_minute() {
        let mut report = report();
        (report.tests, report.streams, report.first_token) = Default::default();
        report.sustained = Sustained::of(warming(45));
        let text = render(&report, Output::Table);
        insta::assert_snapshot!(text);
        assert_eq!(
            render(&report, Output::Csv).matches("sustained,").count(),
            270
        );
    }

    #[test]
    fn json_has_everything() {
        let json: serde_json::Value =
            serde_json::from_str(&render(&report(), Output::Json)).expect("JSON");
        assert_eq!(json["machine"]["clusters"][0]["design"], "Cortex-X3");
        assert_eq!(json["machine"]["allowed"]["cores"], "0-8");
        assert_eq!(json["run"]["placement"]["one"]["threads"], 5);
        assert_eq!(json["run"]["cache_type"], "f16");
        assert_eq!(
            json["tests"][1]["roofline"]["bytes_per_token"],
            1_500_000_000_u64
        );
        assert_eq!(json["streams"][0]["answers"], 4);
    }

    #[test]
    fn teams_that_are_alike_are_told_once() {
        let of = |threads, cores: &str| Team {
            threads,
            cores: cores.parse().expect("cores"),
        };
        let mut all = Placement::of(&of(4, "4-7"));
        assert_eq!(placement(&all), "4 threads on cores 4-7");
        all.one = of(1, "");
        assert_eq!(
            placement(&all),
            "one answer 1 thread; several, and prompts, 4 threads on cores 4-7"
        );
        all.few = of(2, "");
        assert_eq!(
            placement(&all),
            "one answer 1 thread; several 2 threads; prompts 4 threads on cores 4-7"
        );
    }
}
