//! What the machine gives and what a model makes of it, for `/status`: cores, features, threads and why these, and the speed that
//! memory allows. `pocket-llm bench` tells the same and measures it.

use super::super::app::App;
use crate::device::{Allowed, Team, huge};
use crate::engine::EngineState;
use crate::measure::report::{MachineFacts, Roofline};
use crate::pool::Seen;
use serde_json::{Value, json};

/// Cores, what of them is allowed at this moment, and features.
pub(super) fn machine(app: &App, current: Option<&Seen>) -> Value {
    let variant = current.and_then(|seen| match &seen.state {
        EngineState::Ready(info) => info.cpu_variant.clone(),
        _ => None,
    });
    let topology = &app.pool().placed().topology;
    let facts = MachineFacts::of(
        topology,
        Allowed::here(),
        variant.as_deref(),
        huge::setting(),
    );
    let clusters: Vec<Value> = facts
        .clusters
        .iter()
        .map(|cluster| {
            json!({
                "cores": cluster.cores,
                "design": cluster.design,
                "maxMhz": cluster.max_khz.map(|khz| khz / 1000),
                "capacity": cluster.capacity,
                "little": cluster.little,
            })
        })
        .collect();
    let tuned = current.and_then(|seen| seen.facts.tuned.as_ref());
    json!({
        "clusters": clusters,
        "allowedCores": facts.allowed.cores,
        "quotaCores": facts.allowed.quota,
        "features": facts.features,
        "featuresInUse": facts.features_in_use,
        "hugePages": facts.huge_pages,
        "memoryBytesPerSecond": tuned.and_then(|tuned| tuned.bandwidth),
    })
}

/// Where a model computes, why there, and how fast it can be.
pub(super) fn speed(app: &App, seen: &Seen) -> Value {
    let facts = &seen.facts;
    let (placement, cache_type, reason) = app.pool().placement_of(facts);
    let now = placement.within(&Allowed::here());
    let team = |team: &Team| json!({"threads": team.threads, "cores": (!team.cores.is_empty()).then_some(&team.cores)});
    let tuned = facts.tuned.as_ref();
    let bandwidth = tuned.and_then(|tuned| tuned.bandwidth);
    let limit = bandwidth
        .map(|bandwidth| Roofline::of(&facts.header, cache_type, 0, bandwidth).tokens_per_second);
    json!({
        "oneAnswer": team(&now.one),
        "severalAnswers": team(&now.few),
        "prompts": team(&now.many),
        "reason": reason,
        "cacheType": cache_type,
        "bytesPerToken": facts.header.bytes_per_decoded_token(),
        "tokensPerSecondAtMost": limit,
        "tuned": tuned.map(|tuned| json!({
            "at": tuned.measured_at,
            "prompts": tuned.figures.prefill,
            "oneAnswer": tuned.figures.decode,
            "severalAnswers": tuned.figures.decode_few,
        })),
    })
}
