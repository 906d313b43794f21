//! From a model, what was asked for and what there is to what is done: pure arithmetic.

use super::kernels::Kernels;
use super::layers::uneven_head;
use super::needs::{Bytes, CELLS, Facts, Needs, Run};
use crate::engine::{
    CacheType, DEFAULT_CACHE_BYTES, DEFAULT_CONTEXT_PER_SEQUENCE, MOST_ROWS, MOST_SEQUENCES,
};
use crate::models::gguf::Gguf;
use std::fmt;

/// Sequences that run at once where nobody said a number, and what that is reduced to.
const SEQUENCES: [u32; 3] = [4, 2, 1];
/// Rows of a step where nobody said a number, and what that is reduced to. More than [`DEFAULT_ROWS`] only where they cost little.
const ROWS: [u32; 5] = [512, 256, DEFAULT_ROWS, 64, 32];
/// What more rows than [`DEFAULT_ROWS`] may cost, in bytes: the wider a model is, the longer a row takes and the less is gained.
const MORE_ROWS: u64 = 16 << 20;
/// Sequences that run at once where nobody said a number and memory allows.
pub const DEFAULT_PARALLEL: u32 = SEQUENCES[0];
/// Rows of a step at least, where nobody said a number and memory allows.
pub const DEFAULT_ROWS: u32 = 128;
/// What the default context of a sequence is reduced to.
const LESS_CONTEXT: [u32; 2] = [1024, 512];

/// What somebody asked for; `None` leaves it to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// KV cells in all.
    pub ctx_size: Option<u32>,
    /// Sequences that run at once.
    pub parallel: Option<u32>,
    /// Rows of a step at most.
    pub batch_size: Option<u32>,
    /// How the KV cache is stored.
    pub cache_type: CacheType,
    /// Bytes for states of earlier prompts. Where nobody said a number they take what is left over, up to
    /// [`DEFAULT_CACHE_BYTES`].
    pub cache_bytes: Option<u64>,
    /// Whether no tokens are drafted, which needs a little less memory.
    pub no_drafts: bool,
}

/// How a model is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// KV cells in all.
    pub ctx_size: u32,
    /// Sequences that run at once.
    pub parallel: u32,
    /// Rows of a step at most.
    pub batch_size: u32,
    /// What that takes.
    pub needs: Needs,
}

/// Why a model can't be run like that: one sentence with what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DoesNotFit {
    /// A setting that can't be used with this model, whatever the memory.
    #[error("{0}")]
    Setting(String),
    /// More than there is.
    #[error(
        "{model}{} does not fit into memory: {needs}, but {} are available: {advice}",
        With(asked),
        Bytes(*.available)
    )]
    Memory {
        /// The file.
        model: String,
        /// What was asked for.
        asked: Asked,
        /// What the least of what is allowed would take.
        needs: Box<Needs>,
        /// What there is, in bytes.
        available: u64,
        /// What would do.
        advice: String,
    },
}

impl DoesNotFit {
    /// The same with a name in place of the file: clients have no business with paths.
    #[must_use]
    pub fn of(mut self, name: &str) -> Self {
        if let Self::Memory { model, .. } = &mut self {
            name.clone_into(model);
        }
        self
    }
}

/// Chooses what was not asked for, and checks that all of it fits into `available` bytes (if that is known).
///
/// What was asked for is honoured or refused. The rest is reduced until it fits, the cheapest loss first:
/// 1. rows of a step (512 or 256 where they cost at most 16 MiB more than 128, then 128, 64, 32): long prompts get slower, answers
///    do not;
/// 2. context of a sequence (2,048, 1,024, 512 tokens): long chats are cut, short ones see no difference;
/// 3. sequences (4, 2, 1): requests wait for one another.
///
/// What is then left over is for states of earlier prompts.
///
/// The faster layout of the weights is not given up: computing reads the copy instead of the file, whose pages the system may
/// then drop, so without the copy as much memory is needed, and llama.cpp is several times slower.
pub fn plan(
    model: &Gguf,
    asked: &Asked,
    kernels: Kernels,
    available: Option<u64>,
) -> Result<Plan, DoesNotFit> {
    let available = available.unwrap_or(u64::MAX);
    let facts = Facts::of(model, kernels, asked.cache_type);
    if let Some(head) = uneven_head(model, asked.cache_type) {
        return Err(DoesNotFit::Setting(format!(
            "--cache-type {}: this model's heads have {head} numbers, which is no multiple of {}: use f16",
            asked.cache_type,
            asked.cache_type.block_numbers()
        )));
    }
    match choose(&facts, asked, trained(model), available)? {
        Choice::Fits(plan) => Ok(plan),
        Choice::TooLarge(least) => Err(DoesNotFit::Memory {
            model: model.path().display().to_string(),
            asked: *asked,
            needs: Box::new(least.needs),
            available,
            advice: advice(&facts, asked, trained(model), &least, available),
        }),
    }
}

/// Rows of a step of a draft model at most: it reads texts in the pauses of the model that answers.
pub const DRAFT_ROWS: u32 = 64;

/// How a draft model is run beside a model that was planned like `of`: with as many sequences, as long ones, whatever there is of memory.
pub fn plan_draft(model: &Gguf, of: &Asked, kernels: Kernels) -> Result<Plan, DoesNotFit> {
    let asked = Asked {
        batch_size: Some(DRAFT_ROWS.max(of.parallel.unwrap_or(DEFAULT_PARALLEL))),
        cache_bytes: Some(0),
        no_drafts: true,
        ..*of
    };
    plan(model, &asked, kernels, None)
}

enum Choice {
    /// The best that fits.
    Fits(Plan),
    /// The least that is allowed, and too large.
    TooLarge(Plan),
}

fn choose(
    facts: &Facts,
    asked: &Asked,
    trained: u32,
    available: u64,
) -> Result<Choice, DoesNotFit> {
    let (first, others) = candidates(facts, asked, trained)?;
    let plan = |run: Run| Plan {
        ctx_size: run.cells,
        parallel: run.sequences,
        batch_size: run.rows,
        needs: Needs {
            prompt_cache: asked.cache_bytes.unwrap_or(0),
            ..facts.needs(run)
        },
    };
    let mut tried = plan(first);
    for run in others {
        if tried.needs.total() <= available {
            break;
        }
        tried = plan(run);
    }
    let total = tried.needs.total();
    Ok(if total <= available {
        if asked.cache_bytes.is_none() {
            tried.needs.prompt_cache = DEFAULT_CACHE_BYTES.min(available - total);
        }
        Choice::Fits(tried)
    } else {
        Choice::TooLarge(tried)
    })
}

/// Tokens that the model was trained for in one sequence.
fn trained(model: &Gguf) -> u32 {
    let told = model.setting("context_length").unwrap_or(0);
    match u32::try_from(told).unwrap_or(u32::MAX) {
        0 => DEFAULT_CONTEXT_PER_SEQUENCE,
        trained => trained,
    }
}

/// The best that may be tried, and what comes after it. Everything in it can be used with the model.
fn candidates(facts: &Facts, asked: &Asked, trained: u32) -> Result<(Run, Vec<Run>), DoesNotFit> {
    let sequences = asked.parallel.unwrap_or(SEQUENCES[0]);
    let share = share(asked, sequences, trained)?;
    let with = |share: u32, run: Run| {
        let cells = share.checked_mul(run.sequences).filter(|cells| *cells > 0);
        let cells = cells
            .ok_or_else(|| DoesNotFit::Setting("--ctx-size is too small or too large".into()))?;
        Ok(Run { cells, ..run })
    };
    let usual = Run {
        cells: 0,
        sequences,
        rows: rows(asked, sequences)?,
        drafts: !asked.no_drafts,
    };
    let usual = with(share, usual)?;
    let (mut first, mut others) = (usual, Vec::new());
    if asked.batch_size.is_none() {
        let mut sizes = ROWS.map(|rows| rows.max(sequences)).to_vec();
        sizes.dedup();
        let runs = sizes.into_iter().map(|rows| Run { rows, ..usual });
        let cheap = |run: &Run| run.rows <= usual.rows || facts.apart(*run, usual) <= MORE_ROWS;
        let mut runs = runs.filter(cheap);
        first = runs.next().unwrap_or(usual);
        others.extend(runs);
    }
    let mut last = others.last().copied().unwrap_or(first);
    // With a context that was asked for, fewer sequences would only make shares larger.
    if asked.ctx_size.is_none() {
        let mut least = share;
        for less in LESS_CONTEXT.into_iter().filter(|less| *less < share) {
            least = less;
            last = with(least, last)?;
            others.push(last);
        }
        let fewer = SEQUENCES.into_iter().skip(1);
        for sequences in fewer.filter(|_| asked.parallel.is_none()) {
            last = with(least, Run { sequences, ..last })?;
            others.push(last);
        }
    }
    Ok((first, others))
}

/// Tokens of each sequence.
fn share(asked: &Asked, sequences: u32, trained: u32) -> Result<u32, DoesNotFit> {
    if !(1..=MOST_SEQUENCES).contains(&sequences) {
        return Err(DoesNotFit::Setting(format!(
            "--parallel {sequences}: use 1 to {MOST_SEQUENCES}"
        )));
    }
    let Some(cells) = asked.ctx_size else {
        return Ok(DEFAULT_CONTEXT_PER_SEQUENCE.min(trained));
    };
    let share = cells / sequences;
    if share > trained {
        return Err(DoesNotFit::Setting(format!(
            "--ctx-size {} gives each of {sequences} sequences {share} tokens, but the model was trained for {trained}: \
             use --ctx-size {} or less",
            share * sequences,
            u64::from(trained) * u64::from(sequences),
        )));
    }
    Ok(share)
}

/// Rows of a step that were asked for, or the usual number.
fn rows(asked: &Asked, sequences: u32) -> Result<u32, DoesNotFit> {
    let rows = asked.batch_size.unwrap_or(DEFAULT_ROWS.max(sequences));
    if rows < sequences || rows > MOST_ROWS {
        return Err(DoesNotFit::Setting(format!(
            "--batch-size {rows}: a step needs a row for each of {sequences} sequences; use {sequences} to {MOST_ROWS}"
        )));
    }
    Ok(rows)
}

/// What would do instead of a plan that is too large although nothing can be reduced any more.
fn advice(facts: &Facts, asked: &Asked, trained: u32, least: &Plan, available: u64) -> String {
    let cache = asked.cache_bytes.unwrap_or(0);
    let fits = |run: Run| facts.needs(run).total().saturating_add(cache) <= available;
    let run = Run {
        cells: least.ctx_size,
        sequences: least.parallel,
        rows: least.batch_size,
        drafts: !asked.no_drafts,
    };
    if asked.ctx_size.is_some()
        && let Some(cells) = most_cells(run, fits)
    {
        return format!("use --ctx-size {cells} or less");
    }
    // Less than everything that was asked for.
    let free = Asked::default();
    match choose(facts, &free, trained, available) {
        Ok(Choice::Fits(plan)) if *asked != free => format!(
            "use --ctx-size {} --parallel {} --batch-size {}",
            plan.ctx_size, plan.parallel, plan.batch_size
        ),
        _ => "use a smaller model, or the same one with fewer bits per weight".into(),
    }
}

/// The most cells, in whole units for each sequence, that fit otherwise unchanged.
fn most_cells(run: Run, fits: impl Fn(Run) -> bool) -> Option<u32> {
    let unit = u32::try_from(CELLS).ok()?.checked_mul(run.sequences)?;
    let with = |units: u32| Run {
        cells: units * unit,
        ..run
    };
    let (mut fitting, mut too_many) = (0, run.cells / unit + 1);
    while too_many - fitting > 1 {
        let middle = fitting + (too_many - fitting) / 2;
        if fits(with(middle)) {
            fitting = middle;
        } else {
            too_many = middle;
        }
    }
    (fitting > 0).then(|| with(fitting).cells)
}

/// What was asked for, as the flags that ask for it.
struct With<'a>(&'a Asked);

impl fmt::Display for With<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self
            .0
            .cache_bytes
            .filter(|bytes| *bytes > 0)
            .map(|bytes| u32::try_from(bytes >> 20).unwrap_or(u32::MAX));
        let flags = [
            ("--ctx-size", self.0.ctx_size),
            ("--parallel", self.0.parallel),
            ("--batch-size", self.0.batch_size),
            ("--cache-mib", mebibytes),
        ];
        let mut word = " with";
        for (flag, number) in flags {
            if let Some(number) = number {
                write!(f, "{word} {flag} {number}")?;
                word = "";
            }
        }
        Ok(())
    }
}
