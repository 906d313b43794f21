//! What would make it faster, in plain words. Pure: from a report to sentences.

use super::report::{Report, best};
use crate::device::Topology;
use crate::device::placement::FEW_ROWS;

/// Below this share of what memory allows, something else limits decoding.
const WELL: f64 = 0.5;
/// A long run that keeps this much is no reason to worry.
const KEPT: f64 = 0.9;
/// What other programs may have of the cores before it is told.
const QUIET: f64 = 0.1;
/// A second thread that adds less than this share of bandwidth is of no use for decoding.
const MORE_BANDWIDTH: f64 = 1.1;

/// Sentences on the machine and the build, those that matter most first. `about_model` is what the file's header alone tells, `laid_out`
/// the share of its bytes that are in a layout of this CPU's.
pub fn advice(
    report: &Report,
    topology: &Topology,
    about_model: Vec<String>,
    laid_out: f64,
) -> Vec<String> {
    let mut advice: Vec<String> = busy(report.others).into_iter().collect();
    advice.extend(build(report));
    advice.extend(about_model);
    advice.extend(layout(report, laid_out));
    advice.extend(cores(report, topology));
    advice.extend(speed(report));
    advice.extend(pages(report));
    advice.extend(heat(report));
    advice
}

/// Why figures mean little, if other programs had so much of the cores.
pub fn busy(others: Option<f64>) -> Option<String> {
    let others = others.filter(|others| *others > QUIET)?;
    Some(format!(
        "other programs had {:.0} % of the cores meanwhile; threads wait for each other, so these figures are lower than those of an idle machine, by more than that share: measure again when it is idle",
        others * 100.0
    ))
}

fn build(report: &Report) -> Vec<String> {
    let machine = &report.machine;
    let lost = |feature: &str, what: &str| {
        machine.is_unused(feature).then(|| {
            format!("this CPU has {feature} ({what}), but the kernels in use were built without it: prompts and answers are much slower than they could be; use the package of `make arm64`, or build on this machine")
        })
    };
    let arm = [
        lost("i8mm", "products of matrices of 8-bit integers"),
        lost("dotprod", "dot products of 8-bit integers"),
    ];
    let x86 = [
        lost("avx2", "vectors of 256 bits"),
        lost("avx512f", "vectors of 512 bits"),
    ];
    // The largest loss alone: a build without dotprod has no i8mm either.
    let mut losses = arm.into_iter().chain(x86).flatten();
    losses.next().into_iter().collect()
}

fn layout(report: &Report, laid_out: f64) -> Option<String> {
    let quantised = !["F32", "F16", "BF16"].contains(&report.model.quantisation.as_str());
    (laid_out < 0.5 && quantised).then(|| {
        format!("there are no kernels in a layout of this CPU's own for most weights of {}: builds in Q4_0 or Q4_K_M are read by faster ones", report.model.quantisation)
    })
}

fn cores(report: &Report, topology: &Topology) -> Vec<String> {
    let (allowed, placement) = (&report.machine.allowed, &report.run.placement);
    let performance = topology.performance_cores();
    let little = topology.cores().count() > performance.count();
    let mut advice = Vec::new();
    if let Some(quota) = allowed.quota.filter(|quota| *quota < allowed.cores.count()) {
        advice.push(format!(
            "a CPU quota leaves {quota} of {} cores: raise the container's limit, or remove it (a request keeps the share without it)",
            allowed.cores.count()
        ));
    }
    let (here, all) = (performance.and(&allowed.cores).count(), performance.count());
    if little && here < all {
        advice.push(format!(
            "only {here} of {all} performance cores are allowed now ({}): Android takes them from programs in the background; keep the program in front, with a wake lock",
            allowed.cores
        ));
    }
    let most = placement.one.threads.max(placement.many.threads);
    if little && here > 0 && most > here {
        advice.push(format!(
            "{most} threads on {here} performance cores: the others are little ones, for which every layer waits; try --threads {here}"
        ));
    }
    if most > allowed.threads() {
        advice.push(format!(
            "{most} threads, but {} cores: more threads than cores make it many times slower",
            allowed.threads()
        ));
    }
    advice
}

fn speed(report: &Report) -> Vec<String> {
    let mut advice = Vec::new();
    let decode = report
        .tests
        .iter()
        .find_map(|test| Some((test, test.of_roofline()?)));
    if let Some((test, share)) = decode
        && share < WELL
    {
        let more = if report.run.reason.contains("tune") {
            ""
        } else {
            "; `pocket-llm tune` looks for better cores and threads"
        };
        advice.push(format!(
            "{} reaches {:.0} % of what memory allows: computing or waiting takes the rest{more}",
            test.name,
            share * 100.0
        ));
    }
    let of = |threads: u32| {
        report
            .bandwidth
            .iter()
            .find(|measured| measured.threads == threads)
    };
    let (one, most) = (of(1), best(&report.bandwidth));
    #[expect(clippy::cast_precision_loss, reason = "only compared")]
    if let (Some(one), Some(most)) = (one, most)
        && report.run.placement.one.threads > 1
        && (most as f64) < one.bytes_per_second as f64 * MORE_BANDWIDTH
    {
        advice.push(
            "one thread reads memory as fast as all: more threads help prompts, and answers little"
                .into(),
        );
    }
    if report.run.batch_size <= u32::try_from(FEW_ROWS).unwrap_or(u32::MAX) {
        advice.push(format!(
            "--batch-size {} makes prompts slow: weights are read once for so few rows",
            report.run.batch_size
        ));
    }
    advice
}

fn pages(report: &Report) -> Option<String> {
    let never = report.machine.huge_pages.as_deref() == Some("never");
    never.then(|| {
        "the system gives no huge pages: with `madvise` in /sys/kernel/mm/transparent_hugepage/enabled weights are read faster where free memory lies in pieces".into()
    })
}

fn heat(report: &Report) -> Option<String> {
    let run = report.sustained.as_ref()?;
    let degrees = match (run.first.celsius, run.last.celsius) {
        (Some(first), Some(last)) => format!(", {first:.0} °C became {last:.0} °C"),
        _ => String::new(),
    };
    (run.kept < KEPT).then(|| {
        format!("{run}{degrees}: the machine slows down to stay cool; fewer threads may keep the same speed with less heat")
    })
}

#[cfg(test)]
mod tests {
    use super::super::render::tests::report;
    use super::*;
    use crate::device::CoreSet;
    use crate::device::topology::tests::Phone;

    fn set(text: &str) -> CoreSet {
        text.parse().expect("cores")
    }

    fn given(change: impl FnOnce(&mut Report)) -> Vec<String> {
        let topology = Topology::read(Phone::new("pixel-8").root());
        let mut report = report();
        change(&mut report);
        advice(&report, &topology, Vec::new(), 1.0)
    }

    /// The one sentence that a change brings.
    fn sentence(change: impl FnOnce(&mut Report)) -> String {
        let mut sentences = given(change);
        assert_eq!(sentences.len(), 1, "{sentences:?}");
        sentences.remove(0)
    }

    #[test]
    fn a_machine_that_does_what_it_can_gets_no_advice() {
        assert_eq!(given(|_| {}), [""; 0]);
    }

    #[test]
    fn each_loss_has_its_sentence() {
        type Change = fn(&mut Report);
        let table: [(Change, &str); 10] = [
            (
                |report| report.machine.huge_pages = Some("never".into()),
                "the system gives no huge pages",
            ),
            (
                |report| report.others = Some(0.4),
                "other programs had 40 % of the cores",
            ),
            (
                |report| {
                    let in_use = &mut report.machine.features_in_use;
                    in_use.retain(|feature| *feature != "i8mm");
                },
                "this CPU has i8mm",
            ),
            (
                |report| report.machine.features_in_use.clear(),
                "this CPU has i8mm",
            ),
            (
                |report| report.machine.allowed.quota = Some(5),
                "a CPU quota leaves 5 of 9 cores",
            ),
            (
                |report| report.machine.allowed.cores = set("0-5,8"),
                "only 3 of 5 performance cores are allowed now (0-5,8)",
            ),
            (
                |report| report.run.placement.many.threads = 9,
                "9 threads on 5 performance cores",
            ),
            (
                |report| report.tests[1].tokens_per_second = 4.0,
                "tg64 reaches 25 % of what memory allows",
            ),
            (
                |report| report.run.batch_size = 8,
                "--batch-size 8 makes prompts slow",
            ),
            (
                |report| report.bandwidth[1].bytes_per_second = 12_000_000_000,
                "one thread reads memory as fast as all",
            ),
        ];
        for (change, expected) in table {
            let all = given(change);
            assert!(
                all.iter().any(|sentence| sentence.starts_with(expected)),
                "{expected}: {all:?}"
            );
        }
        let hot = sentence(|report| {
            let samples = super::super::sustained::tests::warming(30);
            report.sustained = super::super::sustained::Sustained::of(samples);
        });
        assert!(
            hot.starts_with("minute 30 has 61 % of the speed of minute 1, 36 °C became 65 °C"),
            "{hot}"
        );
    }

    #[test]
    fn a_file_without_layouts_is_told() {
        let topology = Topology::read(Phone::new("pixel-8").root());
        let of = |laid_out| {
            advice(
                &report(),
                &topology,
                vec!["about the model".into()],
                laid_out,
            )
        };
        assert_eq!(of(0.9), ["about the model"]);
        assert!(
            of(0.1)[1].contains("no kernels in a layout"),
            "{:?}",
            of(0.1)
        );
    }
}
