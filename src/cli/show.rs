//! `pocket-llm show`: what a model is, what it needs and how fast it can be, told from its file's header alone.
//!
//! Reads, prints, loads nothing. Texts of the file are strangers' and reach a terminal, so control characters are taken out.

use crate::config::StoreArgs;
use crate::device::memory::Free;
use crate::engine::ModelInfo;
use crate::models::gguf::{Gguf, Tensor, TensorType};
use crate::models::memory::{Asked, Bytes, Kernels, Plan, plan};
use anyhow::Result;
use clap::Args;
use clap::builder::FalseyValueParser;
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Characters of a file's text that are shown.
const LONGEST_SHOWN: usize = 120;
/// Bytes per second that the speed is told for: a phone reads some 15 to 50 GB/s.
const BANDWIDTH: u64 = 10_000_000_000;

/// What `show` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct ShowArgs {
    /// A model's name (see `pocket-llm list`), `hf:OWNER/REPO/FILE.gguf`, or a GGUF file
    #[arg(env = "POCKET_LLM_MODEL")]
    model: String,

    #[command(flatten)]
    store: StoreArgs,

    /// Print one JSON object instead of lines for people
    #[arg(long, env = "POCKET_LLM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

pub(super) fn show(args: &ShowArgs) -> Result<ExitCode> {
    let gguf = Gguf::read(&args.store.look()?.find(&args.model)?.path)?;
    let report = Report::of(&gguf);
    let text = if args.json {
        format!("{:#}\n", report.json())
    } else {
        let lines = report.lines().into_iter();
        let lines: Vec<_> = lines
            .map(|(name, text)| format!("{name:<14} {text}"))
            .collect();
        lines.join("\n") + "\n"
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough (`| head`).
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What is told.
struct Report {
    info: ModelInfo,
    file_bytes: u64,
    /// By part of the model, its types and their bytes.
    groups: Vec<(&'static str, Vec<(TensorType, u64)>)>,
    /// Whether the embedding is the output matrix too.
    tied: bool,
    template: bool,
    thinks: bool,
    bytes_per_token: u64,
    /// With default settings, whatever memory there is; or why there is none.
    plan: Result<Plan, String>,
    advice: Vec<String>,
}

impl Report {
    fn of(gguf: &Gguf) -> Self {
        let kernels = Kernels::here();
        let defaults = plan(gguf, &Asked::default(), kernels, None);
        let available = Free::here().map(|free| free.bytes);
        let here = plan(gguf, &Asked::default(), kernels, available);
        let mut advice = advice(gguf);
        match (&defaults, &here) {
            (Ok(defaults), Ok(here)) if sizes(defaults) != sizes(here) => advice.push(format!(
                "the free memory here allows --ctx-size {} --parallel {} --batch-size {}, which need {}",
                here.ctx_size,
                here.parallel,
                here.batch_size,
                Bytes(here.needs.total())
            )),
            (Ok(_), Err(error)) => advice.push(error.to_string()),
            _ => {}
        }
        let template = gguf.chat_template();
        Self {
            info: gguf.model_info(),
            file_bytes: gguf.file_bytes(),
            groups: groups(gguf),
            tied: gguf.is_tied(),
            template: template.is_some(),
            thinks: template.is_some_and(|template| template.contains("</think>")),
            bytes_per_token: gguf.bytes_per_decoded_token(),
            plan: defaults.map_err(|error| error.to_string()),
            advice,
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let info = &self.info;
        let unknown = || "not stated".to_owned();
        let text = |text: &Option<String>| text.as_deref().map_or_else(unknown, plain);
        let mut lines = vec![
            ("name", text(&info.name)),
            ("architecture", plain(&info.architecture)),
            ("licence", text(&info.licence)),
            ("parameters", count(info.parameters)),
            ("file", Bytes(self.file_bytes).to_string()),
            ("quantisation", text(&info.quantisation)),
        ];
        lines.extend(self.groups.iter().map(|(group, types)| {
            let types: Vec<String> = types
                .iter()
                .map(|(kind, bytes)| format!("{} {}", kind.name(), Bytes(*bytes)))
                .collect();
            let also = match *group {
                "embedding" if self.tied => ", the output matrix too",
                _ => "",
            };
            (*group, types.join(", ") + also)
        }));
        let template = match (self.template, self.thinks) {
            (true, true) => "the model's own; it thinks before it answers",
            (true, false) => "the model's own",
            (false, _) => "none: chats are put together by the control tokens of its vocabulary",
        };
        let context = match info.trained_context {
            0 => unknown(),
            tokens => format!("{tokens} tokens"),
        };
        lines.extend([
            ("context", context),
            ("vocabulary", format!("{} tokens", info.vocab_size)),
            ("template", template.into()),
            ("reads", self.speed()),
            ("memory", self.memory()),
        ]);
        lines.extend(self.advice.iter().map(|text| ("advice", text.clone())));
        lines
    }

    fn speed(&self) -> String {
        format!(
            "{} per token, so at most {} tokens/s for each 10 GB/s that the memory delivers",
            Bytes(self.bytes_per_token),
            per_second(self.bytes_per_token)
        )
    }

    fn memory(&self) -> String {
        match &self.plan {
            Ok(plan) => format!(
                "with {} x {} tokens and {} rows a step: {}",
                plan.parallel,
                plan.ctx_size / plan.parallel.max(1),
                plan.batch_size,
                plan.needs
            ),
            Err(why) => plain(why),
        }
    }

    fn json(&self) -> Value {
        let info = &self.info;
        let groups: Vec<Value> = self
            .groups
            .iter()
            .flat_map(|(group, types)| {
                types.iter().map(
                    move |(kind, bytes)| json!({"group": group, "type": kind.name(), "bytes": bytes}),
                )
            })
            .collect();
        let memory = self.plan.as_ref().ok().map(|plan| {
            let needs = &plan.needs;
            json!({
                "ctx_size": plan.ctx_size, "parallel": plan.parallel, "batch_size": plan.batch_size,
                "weights_bytes": needs.weights, "cold_bytes": needs.cold, "repacked_bytes": needs.repacked,
                "kv_bytes": needs.kv, "compute_bytes": needs.compute, "reserved_bytes": needs.reserved, "output_bytes": needs.output,
                "draft_bytes": needs.drafts, "prompt_cache_bytes": needs.prompt_cache, "process_bytes": needs.process, "total_bytes": needs.total(),
            })
        });
        json!({
            "name": info.name, "architecture": info.architecture, "licence": info.licence,
            "parameters": info.parameters, "file_bytes": self.file_bytes, "size_bytes": info.size_bytes,
            "quantisation": info.quantisation, "tensors": groups, "trained_context": info.trained_context,
            "vocab_size": info.vocab_size, "template": self.template, "thinks": self.thinks,
            "tied": self.tied, "bytes_per_token": self.bytes_per_token, "memory": memory, "advice": self.advice,
        })
    }
}

fn sizes(plan: &Plan) -> [u32; 3] {
    [plan.ctx_size, plan.parallel, plan.batch_size]
}

/// Parts of a model in the order in which they are shown.
const GROUPS: [&str; 7] = [
    "embedding",
    "attention",
    "feed-forward",
    "experts",
    "output",
    "norms",
    "other",
];

fn group(tensor: Tensor<'_>) -> &'static str {
    let (in_layer, name) = match tensor.layer() {
        Some((_, name)) => (true, name),
        None => (false, tensor.name),
    };
    let begins = |start| name.starts_with(start);
    match name {
        _ if name.contains("norm") => "norms",
        _ if name.contains("_exps.") => "experts",
        _ if in_layer && begins("attn") => "attention",
        _ if in_layer && begins("ffn") => "feed-forward",
        _ if !in_layer && begins("output") => "output",
        _ if name.contains("_embd.") || begins("token_types") => "embedding",
        _ => "other",
    }
}

/// Bytes by part and type, the types with most bytes first.
fn groups(gguf: &Gguf) -> Vec<(&'static str, Vec<(TensorType, u64)>)> {
    let bytes = |name: &str, kind: TensorType| -> u64 {
        let same = gguf
            .tensors()
            .filter(|tensor| tensor.kind == kind && group(*tensor) == name);
        same.map(|tensor| tensor.bytes).sum()
    };
    let all = GROUPS.into_iter().map(|name| {
        let types = TensorType::ALL
            .iter()
            .map(|kind| (*kind, bytes(name, *kind)));
        let mut types: Vec<_> = types.filter(|(_, bytes)| *bytes > 0).collect();
        types.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        (name, types)
    });
    all.filter(|(_, types)| !types.is_empty()).collect()
}

/// What would make it faster, where that is plain from the bytes.
pub(super) fn advice(gguf: &Gguf) -> Vec<String> {
    let all = gguf.bytes_per_decoded_token();
    let wide = |tensor: &Tensor<'_>| !tensor.kind.is_quantised() && tensor.directions() > 1;
    let less = |tensor: Tensor<'_>| {
        let quantised = TensorType::Q8_0.bytes_of(tensor.elements());
        gguf.bytes_read(tensor)
            .saturating_sub(quantised.unwrap_or(tensor.bytes))
    };
    let faster = |saved: u64| saved * 100 / all.saturating_sub(saved).max(1);
    let head = match gguf.tensor("output.weight") {
        Some(output) => Some((output, "output matrix")),
        None => gguf
            .tensor("token_embd.weight")
            .map(|embedding| (embedding, "embedding")),
    };
    let matrices = gguf.tensors().filter(wide);
    let saved: u64 = matrices.clone().map(less).sum();
    let of_head = head.filter(|(tensor, _)| wide(tensor));
    match of_head.map(|(tensor, what)| (tensor, what, less(tensor))) {
        // More than the head is wide: the whole file is.
        _ if faster(saved) >= 50 && saved > of_head.map_or(0, |(tensor, _)| less(tensor)) * 2 => {
            vec![format!(
                "the weights are not quantised: a Q8_0 build is about {} % faster, a Q4_0 build more than twice that",
                faster(saved)
            )]
        }
        Some((tensor, what, saved)) if faster(saved) >= 5 => vec![format!(
            "the {what} is {} and is read for every token: a build with it in Q8_0 is about {} % faster",
            tensor.kind.name(),
            faster(saved)
        )],
        _ => Vec::new(),
    }
}

/// Tokens per second at [`BANDWIDTH`], with one digit where there are few.
fn per_second(bytes_per_token: u64) -> String {
    let tenths = BANDWIDTH.saturating_mul(10) / bytes_per_token.max(1);
    match tenths {
        0..100 => format!("{}.{}", tenths / 10, tenths % 10),
        _ => (tenths / 10).to_string(),
    }
}

/// `134.5 million`, `1.5 billion`.
fn count(number: u64) -> String {
    let (unit, name) = match number {
        0..1_000_000 => return number.to_string(),
        1_000_000..1_000_000_000 => (1_000_000, "million"),
        _ => (1_000_000_000, "billion"),
    };
    let tenths = number / (unit / 10);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// A stranger's text as it may reach a terminal: one line, no control characters, not too long.
fn plain(text: &str) -> String {
    let harmless = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut shown: String = text.chars().take(LONGEST_SHOWN).map(harmless).collect();
    if text.chars().nth(LONGEST_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_texts_can_not_move_the_cursor() {
        assert_eq!(
            plain("a\u{1b}[2J\nb\u{9b}"),
            "a\u{fffd}[2J\u{fffd}b\u{fffd}"
        );
        assert_eq!(plain(&"é".repeat(500)).chars().count(), LONGEST_SHOWN + 1);
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0, 999_999, 134_515_008, 999_885_952, 1_543_714_304].map(count);
        assert_eq!(
            shown,
            [
                "0",
                "999999",
                "134.5 million",
                "999.8 million",
                "1.5 billion"
            ]
        );
        assert_eq!(per_second(BANDWIDTH / 27), "27");
        assert_eq!(per_second(4_000_000_000), "2.5");
    }
}
