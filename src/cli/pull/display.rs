//! How a pull shows what it does: a bar on a terminal, a line now and then elsewhere.

use crate::models::download::{Phase, Progress};
use crate::models::memory::Bytes;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Without a terminal a line is written when this long has gone by, or
const LINE_EVERY: Duration = Duration::from_secs(5);

/// this much of the file has come, in percent.
const LINE_STEP: u64 = 5;

/// A bar, or lines.
pub(super) enum Display {
    /// With the phase that it showed last.
    Bar(ProgressBar, Phase),
    Lines(Lines),
}

pub(super) struct Lines {
    name: String,
    /// When the last line was written, and the bytes then.
    last: Option<(Instant, u64)>,
}

impl Display {
    pub(super) fn new(name: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines(Lines {
                name: name.to_owned(),
                last: None,
            });
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style("{prefix}"));
        bar.set_prefix(name.to_owned());
        Self::Bar(bar, Phase::Waiting)
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        match self {
            Self::Bar(bar, last) => show_bar(bar, last, progress),
            Self::Lines(lines) => lines.show(progress),
        }
    }

    pub(super) fn clear(&self) {
        if let Self::Bar(bar, _) = self {
            bar.finish_and_clear();
        }
    }
}

fn show_bar(bar: &ProgressBar, last: &mut Phase, progress: &Progress) {
    let template = match (progress.total(), progress.phase()) {
        (Some(total), Phase::Receiving) => {
            bar.set_length(total);
            "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left{msg}"
        }
        (None, Phase::Receiving) => "{prefix} {binary_bytes} {binary_bytes_per_sec}{msg}",
        _ => "{prefix} {binary_bytes}: {msg}",
    };
    bar.set_style(style(template));
    bar.set_message(match (progress.phase(), progress.attempt()) {
        (Phase::Receiving, 0 | 1) => String::new(),
        (Phase::Receiving, attempt) => format!(" (try {attempt})"),
        (phase, 0 | 1) => words(phase).into(),
        (phase, attempt) => format!("{} (try {attempt})", words(phase)),
    });
    bar.set_position(progress.received());
    let phase = progress.phase();
    if std::mem::replace(last, phase) != phase {
        // What was there already did not come at this speed.
        bar.reset_eta();
    }
    bar.tick();
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Lines {
    fn show(&mut self, progress: &Progress) {
        let (now, received, total) = (Instant::now(), progress.received(), progress.total());
        let Some((when, then)) = self.last else {
            self.last = Some((now, received));
            return;
        };
        let step = total.map_or(u64::MAX, |total| (total * LINE_STEP).div_ceil(100));
        let is_due = now - when >= LINE_EVERY || received.saturating_sub(then) >= step;
        if !is_due {
            return;
        }
        let of = total.map_or(String::new(), |total| format!(" of {}", Bytes(total)));
        let milliseconds = u64::try_from((now - when).as_millis()).unwrap_or(u64::MAX);
        let came = received.saturating_sub(then).saturating_mul(1000);
        let speed = came.checked_div(milliseconds).unwrap_or(0);
        let mut rest = String::new();
        if progress.phase() == Phase::Receiving && speed > 0 {
            let left = total.map_or(0, |total| total.saturating_sub(received) / speed);
            let left = HumanDuration(Duration::from_secs(left));
            rest = format!(", {}/s, {left} left", Bytes(speed));
        }
        if progress.attempt() > 1 {
            rest = format!("{rest} (try {})", progress.attempt());
        }
        let (name, doing) = (&self.name, words(progress.phase()));
        eprintln!("{name}: {doing}, {}{of}{rest}", Bytes(received));
        self.last = Some((now, received));
    }
}

fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Asking => "asking the hub",
        Phase::Locked => "another process fetches it, waiting",
        Phase::Rereading => "reading what is there",
        Phase::Connecting => "connecting",
        Phase::Receiving => "receiving",
        Phase::Pausing => "pausing before another try",
        Phase::Checking => "checking",
        Phase::Ended => "done",
    }
}
