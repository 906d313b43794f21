//! What a worker's end means for its requests: who is served by the next one, who is suspected, who is told.

use super::{Route, Stage, Supervisor};
use crate::engine::connection::Over;
use crate::engine::{EngineError, EngineState, Event};
use crate::models::Identity;
use rustix::process::Signal;
use std::time::Duration;

/// Longest pause between two starts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a request may be handed to a worker that hangs or speaks nonsense before it answers.
const ATTEMPTS: u32 = 2;
/// Requests in a row whose crashes say nothing about the model. When more are refused and nothing is served between them, it
/// is the model that does not work.
const MOST_EXCUSED: u32 = 3;

impl Supervisor {
    /// Ends or keeps the routes of a worker that is gone, and says how long to pause.
    pub(super) fn bury(&mut self, over: &Over) -> Duration {
        self.barren_deaths += 1;
        match over {
            Over::Stopped => {}
            Over::LoadFailed(reason) => {
                let reason = self.why_not_loaded(reason);
                // The first time it is the program's last word, and main says it.
                if self.loaded_once {
                    tracing::error!(reason, "the model can't be loaded");
                }
                self.fail_all(&EngineError::NotReady(reason.clone()));
                self.state.send_replace(EngineState::Failed { reason });
            }
            Over::Died(reason) => self.died(reason, true),
            Over::Killed(reason) => self.died(reason, false),
            Over::Crashed { reason, signal } => {
                let missing_pages = *signal == Some(Signal::BUS.as_raw());
                if missing_pages && self.file_changed() {
                    let reason = format!(
                        "{reason}: the model's file was changed or cut short while it was in use"
                    );
                    self.died(&reason, false);
                } else {
                    self.suspect(reason);
                    self.died(reason, false);
                }
            }
        }
        let doubled = self.barren_deaths.saturating_sub(2).min(10);
        let pause = (self.options.restart_pause * 2u32.pow(doubled)).min(LONGEST_PAUSE);
        let loads = self.loaded_once && !matches!(over, Over::LoadFailed(_));
        if self.barren_deaths <= 1 && loads {
            return Duration::ZERO;
        }
        pause
    }

    /// Whether there is another file now, or none, where the model was loaded from.
    fn file_changed(&self) -> bool {
        self.loaded_once && self.loaded_file != Identity::of(&self.options.config.model)
    }

    fn why_not_loaded(&self, reason: &str) -> String {
        if self.file_changed() {
            return format!("{reason} (its file was changed while it was in use)");
        }
        reason.to_owned()
    }

    fn died(&mut self, reason: &str, is_attempt: bool) {
        if self.loaded_once {
            tracing::error!(reason, in_flight = self.routes.len(), "the worker died");
        }
        self.end_routes(reason, is_attempt);
        let reason = reason.to_owned();
        self.state.send_replace(EngineState::Restarting { reason });
    }

    /// The requests of the step in which the worker crashed are suspects.
    fn suspect(&mut self, reason: &str) {
        for route in self.routes.values_mut() {
            let fingerprint = || self.quarantine.fingerprint(&route.work);
            let fingerprint = route.fingerprint.unwrap_or_else(fingerprint);
            route.fingerprint = Some(fingerprint);
        }
        let inside = || self.routes.values().filter(|route| route.sent.is_some());
        let alone = inside().count() == 1 && !self.left_behind;
        let computed = |route: &&Route| route.stage != Stage::Waits;
        // Who waited for a sequence has done nothing, unless nobody else was there.
        let all = !inside().any(|route| computed(&route));
        let suspects: Vec<_> = inside()
            .filter(|route| all || computed(route))
            .filter_map(|route| Some((route.fingerprint?, route.said)))
            .collect();
        for (fingerprint, said) in suspects {
            self.quarantine.crashed(fingerprint, (alone, said), reason);
            let refused = self.quarantine.refusal(&fingerprint).is_some();
            tracing::warn!(%fingerprint, alone, refused, "this request was in the step that crashed");
            if refused && self.excused < MOST_EXCUSED {
                self.excused += 1;
                self.barren_deaths = self.barren_deaths.saturating_sub(2);
            }
        }
    }

    /// Requests that have said nothing yet are kept for the next worker; the others get their terminal error, and so does one
    /// that has had its attempts, or is known to crash workers. Only a worker that hung or spoke nonsense was an attempt.
    fn end_routes(&mut self, reason: &str, is_attempt: bool) {
        let quarantine = &mut self.quarantine;
        self.routes.retain(|_, route| {
            if route.sent.take().is_some() && !is_attempt {
                route.attempts -= 1;
            }
            let fingerprint = route.fingerprint.as_ref();
            let refusal = fingerprint.and_then(|fingerprint| quarantine.refusal(fingerprint));
            let error = match refusal {
                Some(refusal) if !route.spoke => refusal,
                _ if route.spoke || route.attempts >= ATTEMPTS => {
                    EngineError::EngineDied(reason.to_owned())
                }
                _ => return true,
            };
            // A reader that has left needs no error.
            let _ = route.events.try_send(Event::Failed(error));
            false
        });
    }
}
