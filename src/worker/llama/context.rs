//! A context that has as many threads as the step at hand wants.
//!
//! The binding can't change the numbers of a context, so another one takes its place, and the cells move over: some 100 ms, and no
//! answer changes by it. The old one goes before the new one comes, because memory may not have room for two.

use crate::device::huge::HugePages;
use crate::worker::decoder::StepError;
use crate::worker::teams::{Counts, Teams};
use llama_cpp_2::LlamaContextLoadError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::context::session::{LlamaStateSeqFlags, SeqState};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

/// Stands for what [`Deref`] gives.
const THERE: &str = "a context, but while another one takes its place";

pub(super) struct TeamContext<'m> {
    backend: &'static LlamaBackend,
    model: &'m LlamaModel,
    params: LlamaContextParams,
    context: Option<LlamaContext<'m>>,
    teams: Teams,
    counts: Counts,
    sequences: i32,
}

impl<'m> TeamContext<'m> {
    /// A context like `params`, but for its threads, which are what the teams say. To be made and used on the engine thread.
    pub(super) fn new(
        backend: &'static LlamaBackend,
        model: &'m LlamaModel,
        params: LlamaContextParams,
        teams: Teams,
    ) -> Result<Self, LlamaContextLoadError> {
        let counts = teams.counts();
        let context = made(backend, model, &params, counts)?;
        let sequences = i32::try_from(params.n_seq_max()).unwrap_or(1);
        Ok(Self {
            backend,
            model,
            params,
            context: Some(context),
            teams,
            counts,
            sequences,
        })
    }

    /// Gets ready for a step of so many rows: on the right cores, with the right number of threads.
    pub(super) fn prepare(&mut self, rows: usize) -> Result<(), StepError> {
        let counts = self.teams.prepare(rows);
        if counts != self.counts {
            self.change(counts)?;
        }
        self.teams.begins(rows);
        Ok(())
    }

    /// Another context takes the place of this one, with so many threads.
    fn change(&mut self, counts: Counts) -> Result<(), StepError> {
        let began = Instant::now();
        let states = self.states()?;
        self.context = None;
        let made = made(self.backend, self.model, &self.params, counts);
        // A moment ago there was one of this size. Without it this process can't go on, and the front starts another.
        let mut context = made.expect("a context of the same size");
        for (sequence, state) in states {
            let moved = context.state_seq_set(&state, sequence);
            moved.expect("cells of a context of the same shape");
        }
        self.context = Some(context);
        self.counts = counts;
        tracing::info!(
            threads = counts.one,
            threads_batch = counts.several,
            ms = began.elapsed().as_millis(),
            "another number of threads"
        );
        Ok(())
    }

    /// Takes in how long a step of so many rows took.
    pub(super) fn took(&mut self, rows: usize, took: Duration) {
        self.teams.took(rows, took);
    }

    /// Threads that the last step had less than planned.
    pub(super) fn left_out(&self) -> u32 {
        self.teams.left_out()
    }

    /// What each sequence holds.
    fn states(&self) -> Result<Vec<(i32, SeqState)>, StepError> {
        let held = (0..self.sequences).filter(|sequence| self.kv_cache_seq_pos_max(*sequence) >= 0);
        let states = held.map(|sequence| {
            let state = self.state_seq_get(sequence, LlamaStateSeqFlags::empty());
            state.map(|state| (sequence, state))
        });
        let states: Result<_, _> = states.collect();
        states.map_err(|error| StepError(format!("cells can't be moved: {error}")))
    }
}

/// llama.cpp sets the cells to zero, so their pages are taken here.
fn made<'m>(
    backend: &'static LlamaBackend,
    model: &'m LlamaModel,
    params: &LlamaContextParams,
    counts: Counts,
) -> Result<LlamaContext<'m>, LlamaContextLoadError> {
    let _huge = HugePages::allow();
    model.new_context(backend, with_threads(params, counts))
}

fn with_threads(params: &LlamaContextParams, counts: Counts) -> LlamaContextParams {
    // Hundreds of threads have no use, and thousands end the process.
    let threads = |n: u32| i32::try_from(n.clamp(1, 512)).unwrap_or(1);
    params
        .clone()
        .with_n_threads(threads(counts.one))
        .with_n_threads_batch(threads(counts.several))
}

impl<'m> Deref for TeamContext<'m> {
    type Target = LlamaContext<'m>;

    fn deref(&self) -> &LlamaContext<'m> {
        self.context.as_ref().expect(THERE)
    }
}

impl<'m> DerefMut for TeamContext<'m> {
    fn deref_mut(&mut self) -> &mut LlamaContext<'m> {
        self.context.as_mut().expect(THERE)
    }
}
