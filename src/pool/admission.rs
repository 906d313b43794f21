//! The tasks that bring models in and let them go.
//!
//! Making room is done by one task at a time, in the order in which models were asked for. So two models never push each other
//! out at once, and a busy model can't keep another one waiting for ever: from the moment on that it must go, new requests for
//! it wait behind the model that comes.

use super::pace::pace;
use super::policy::{Seat, make_room};
use super::slot::Slot;
use super::{Inner, Slots};
use crate::device::memory;
use crate::engine::{EngineError, EngineState, WorkerConfig};
use crate::models::memory::{Asked, DEFAULT_PARALLEL, Plan, plan, plan_draft};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

type Word = oneshot::Sender<Result<WorkerConfig, EngineError>>;

/// Makes room for a model, lets it load, and sees it through its first load.
pub(super) async fn admit(inner: Arc<Inner>, slot: Arc<Slot>, word: Word) {
    let turn = inner.turn.lock().await;
    let decided = decide(&inner, &slot).await;
    if let Err(error) = &decided {
        tracing::warn!(model = slot.facts.model.name, %error, "the model is not loaded");
        inner.leave(&slot);
    }
    let refused = decided.is_err();
    // The engine is gone only when the server is.
    let _ = word.send(decided);
    if refused {
        drop(turn);
        return inner.remove(&slot).await;
    }
    // The next model waits until this one is in: two loads at once are slower than one after the other, and what the first
    // one takes is known then.
    let state = tokio::select! {
        state = slot.engine.loaded() => state,
        () = pace(&inner, &slot) => slot.engine.state(),
    };
    drop(turn);
    // Who looks after idle models has not counted this one yet.
    inner.bell.notify_one();
    if let EngineState::Failed { reason } | EngineState::Restarting { reason } = state {
        tracing::warn!(
            model = slot.facts.model.name,
            reason,
            "the model could not be loaded"
        );
        if !slot.kept {
            inner.note_failure(&slot, &reason);
            // What waits for it is served by another attempt, or told why not. After that it is not tried again by itself.
            slot.unused().await;
            if !slot.is_ready() {
                inner.remove(&slot).await;
            }
        }
    }
}

/// The settings with which the model fits, once there is room; or why there can't be.
async fn decide(inner: &Arc<Inner>, slot: &Arc<Slot>) -> Result<WorkerConfig, EngineError> {
    let plan = loop {
        if slot.uses() == 0 {
            return Err(nobody_waits());
        }
        let (plan, victims) = choose(inner, slot)?;
        // Counted from now on, so that nobody else plans with it.
        slot.takes(plan.needs.total());
        if victims.is_empty() {
            break plan;
        }
        // What there is may have changed when they are gone: then it is looked at again. Each round has fewer that could go.
        make_room_for(inner, slot, &victims).await?;
    };
    slot.admit();
    inner.slots().loads += 1;
    tracing::info!(
        model = slot.facts.model.name,
        ctx_size = plan.ctx_size,
        parallel = plan.parallel,
        batch_size = plan.batch_size,
        memory = %plan.needs,
        "loading"
    );
    let mut config = inner.settings.engine.config.clone();
    config.model.clone_from(&slot.facts.model.path);
    config.chat_template = slot.facts.chat_template();
    let (placement, cache_type, reason) = inner.placement_of(&slot.facts);
    tracing::info!(
        model = slot.facts.model.name,
        threads = placement.one.threads,
        threads_few = placement.few.threads,
        threads_batch = placement.many.threads,
        cores = (!placement.one.cores.is_empty()).then(|| placement.one.cores.to_string()),
        %cache_type,
        reason,
        "computing"
    );
    config.place(placement);
    config.cache_type = cache_type;
    config.ctx_size = Some(plan.ctx_size);
    config.parallel = plan.parallel;
    config.batch_size = plan.batch_size;
    config.cache_bytes = Some(plan.needs.prompt_cache);
    if plan.needs.draft_model > 0 {
        let draft = slot.facts.draft.as_ref();
        config.draft_model = draft.map(|(model, _)| model.path.clone());
    }
    Ok(config)
}

fn nobody_waits() -> EngineError {
    EngineError::NotReady("nobody waits for it any more".into())
}

/// Waits until the victims are gone. They stay when everyone who waits for the model has left before that.
async fn make_room_for(
    inner: &Arc<Inner>,
    slot: &Arc<Slot>,
    victims: &[Arc<Slot>],
) -> Result<(), EngineError> {
    {
        let _list = inner.slots();
        for victim in victims {
            victim.make_way();
        }
    }
    for victim in victims {
        tracing::info!(
            model = victim.facts.model.name,
            for_model = slot.facts.model.name,
            in_flight = victim.engine.in_flight(),
            "unloading to make room"
        );
    }
    for victim in victims {
        tokio::select! {
            biased;
            () = slot.unused() => {
                inner.stay(victims);
                return Err(nobody_waits());
            }
            () = victim.unused() => {}
        }
        inner.remove(victim).await;
    }
    Ok(())
}

/// A plan for the model, and who must go for it. With its full sizes, if that is possible by letting others go; else with
/// what fits when it is alone.
fn choose(inner: &Inner, slot: &Arc<Slot>) -> Result<(Plan, Vec<Arc<Slot>>), EngineError> {
    let settings = &inner.settings;
    let others: Vec<Arc<Slot>> = others(&inner.slots(), slot);
    let total = total(inner, &others);
    let seats: Vec<Seat> = others.iter().map(|slot| seat(slot)).collect();
    let header = &slot.facts.header;
    let asked = asked_of(slot, &settings.asked);
    let planned = |asked: &Asked, available| {
        plan(header, asked, settings.kernels, available)
            .map_err(|error| EngineError::Unloadable(error.of(&slot.facts.model.name).to_string()))
    };
    let room = |plan: &Plan| {
        make_room(
            &seats,
            plan.needs.total(),
            total.unwrap_or(u64::MAX),
            settings.most_loaded,
        )
    };
    let tuned_rows = slot.facts.tuned.as_ref().and_then(|tuned| tuned.batch_size);
    let tuned = Asked {
        batch_size: asked.batch_size.or(tuned_rows),
        ..asked
    };
    // Rows that were measured are a wish: where memory is short, fewer will do.
    let mut plan = planned(&tuned, None).or_else(|_| planned(&asked, None))?;
    plan.needs.draft_model = draft_bytes(inner, slot, &plan, &asked);
    let mut victims = room(&plan);
    if victims.is_none() && plan.needs.draft_model > 0 {
        // Answers need none.
        tracing::warn!(
            model = slot.facts.model.name,
            needs = %plan.needs,
            "there is no room for the draft model"
        );
        plan.needs.draft_model = 0;
        victims = room(&plan);
    }
    if victims.is_none() {
        plan = planned(&asked, total)?;
        victims = room(&plan);
    }
    // What was planned within the total fits when everyone has gone.
    let victims = victims.unwrap_or_default();
    let victims = victims.into_iter().map(|index| Arc::clone(&others[index]));
    Ok((plan, victims.collect()))
}

/// What a draft model would take beside the model with this plan; 0 without one.
fn draft_bytes(inner: &Inner, slot: &Slot, plan: &Plan, asked: &Asked) -> u64 {
    let Some((draft, header)) = slot.facts.draft.as_ref().filter(|_| !asked.no_drafts) else {
        return 0;
    };
    let asked = Asked {
        ctx_size: Some(plan.ctx_size),
        parallel: Some(plan.parallel),
        ..*asked
    };
    match plan_draft(header, &asked, inner.settings.kernels) {
        Ok(plan) => plan.needs.total(),
        Err(error) => {
            tracing::warn!(%error, model = draft.name, "the draft model is not used");
            0
        }
    }
}

/// What the operator asked for holds for every model. A context that is more than one was trained for is a mistake where the
/// operator named that model, and the most that it can do where a client did.
fn asked_of(slot: &Slot, asked: &Asked) -> Asked {
    let trained = slot.facts.info.trained_context;
    let sequences = asked.parallel.unwrap_or(DEFAULT_PARALLEL);
    let most = Some(trained.saturating_mul(sequences)).filter(|most| *most > 0 && !slot.kept);
    Asked {
        ctx_size: asked
            .ctx_size
            .map(|cells| most.map_or(cells, |most| cells.min(most))),
        cache_type: slot
            .facts
            .tuned
            .as_ref()
            .and_then(|tuned| tuned.cache_type)
            .unwrap_or(asked.cache_type),
        ..*asked
    }
}

/// The models that have their memory, or have been promised it.
fn others(slots: &Slots, slot: &Arc<Slot>) -> Vec<Arc<Slot>> {
    let have = |other: &&Arc<Slot>| !Arc::ptr_eq(other, slot) && other.bytes() > 0;
    slots.list.iter().filter(have).cloned().collect()
}

fn seat(slot: &Slot) -> Seat {
    let age = slot.last_used().elapsed().as_millis();
    Seat {
        bytes: slot.holds(),
        busy: slot.uses() > 0,
        last_used: u64::MAX - u64::try_from(age).unwrap_or(u64::MAX),
    }
}

/// Bytes that all models together may take: what somebody said, and no more than is free when what our own workers hold counts
/// as free. Weights are mapped and count as free in any case.
fn total(inner: &Inner, loaded: &[Arc<Slot>]) -> Option<u64> {
    let ours = loaded.iter().filter_map(|slot| slot.engine.load().pid);
    let ours: u64 = ours.filter_map(memory::anonymous_bytes).sum();
    let machine = memory::Free::here().map(|free| free.bytes.saturating_add(ours));
    match (inner.settings.memory, machine) {
        (Some(said), Some(machine)) => Some(said.min(machine)),
        (said, machine) => said.or(machine),
    }
}

/// Lets models go that nobody has used for `keep_alive`. Sleeps until one is due or a use ends.
pub(super) async fn unload_idle(inner: Weak<Inner>, keep_alive: Duration) {
    loop {
        let Some(pool) = inner.upgrade() else { return };
        let bell = Arc::clone(&pool.bell);
        let now = Instant::now();
        let mut next = None;
        let idle: Vec<Arc<Slot>> = {
            let slots = pool.slots();
            let unused = slots
                .list
                .iter()
                .filter(|slot| slot.uses() == 0 && slot.is_admitted() && !slot.is_leaving());
            let due = |slot: &&Arc<Slot>| {
                let at = slot.last_used() + keep_alive;
                if at > now {
                    next = Some(next.map_or(at, |next: Instant| next.min(at)));
                }
                at <= now
            };
            let due: Vec<_> = unused.filter(due).cloned().collect();
            // Under the lock: nobody gets in between.
            for slot in &due {
                slot.leave();
            }
            due
        };
        for slot in idle {
            tracing::info!(
                model = slot.facts.model.name,
                "unloading: nobody asked for it"
            );
            pool.remove(&slot).await;
        }
        drop(pool);
        tokio::select! {
            () = bell.notified() => {}
            () = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }
}
