//! What formats need of a model: its vocabulary as the grammar engine wants it, and the compiler of formats.

use super::{Constraint, Form, Guard, Marker, Phase, Plan, Seen, Start, gbnf, schema};
use crate::engine::{Format, Token};
use crate::worker::decoder::Vocab;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a format at most: a schema as JSON, an expression or a grammar.
pub const MOST_FORMAT_BYTES: usize = 64 << 10;
pub(super) const NOTHING_FITS: &str = "nothing fits it";
/// Looking for the place of an error ends after this long; each try is a compilation of its own.
const LOCATING: Duration = Duration::from_millis(100);
/// Longer tokens are never part of a constrained answer: the engine's tree is not deeper.
const MOST_TOKEN_BYTES: usize = 1000;
/// Larger vocabularies do not fit the engine's tree.
const MOST_TOKENS: u32 = 0x00ff_ffff;

/// Kinds of text whose tokens the engine knows beforehand. With a kind more (up to 10 characters) bounded strings take a tenth off
/// the time of a mask, and the vocabulary of Gemma 3 takes 16 MiB more; with a kind less, a mask in a bounded string takes 2 ms.
const SLICES: [&str; 2] = [r#"[^"\\\x00-\x1F\x7F]{1,30}"#, r#"[^"\\\x00-\x1F\x7F]+"#];

/// What a format may cost. The engine counts its work and gives up where a count is reached.
fn limits() -> ParserLimits {
    ParserLimits {
        // Alternatives that are open at once.
        max_items_in_row: 1000,
        // Compiling expressions: about 20 ms.
        initial_lexer_fuel: 1_000_000,
        // One mask: about 15 ms together.
        step_lexer_fuel: 100_000,
        step_max_items: 50_000,
        // About 2 KiB each, for as long as the answer takes.
        max_lexer_states: 10_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// A model's vocabulary, and what compiles formats for it.
pub struct Constraints {
    factory: ParserFactory,
    pub(super) env: TokEnv,
    /// Tokens that a grammar may choose: those with bytes, and the end tokens.
    pub(super) choosable: SimpleVob,
    ends: Vec<u32>,
    /// Tokens with the bytes of another one, in order, and that one: the engine knows one for each text.
    pub(super) twins: Vec<(u32, u32)>,
}

impl Constraints {
    /// Memory that [`Constraints::new`] takes for this vocabulary, in bytes: an upper bound.
    pub fn needs(vocab: &dyn Vocab) -> u64 {
        // Measured: 14.2 MiB for 49,152 tokens, 78.9 MiB for 262,144.
        u64::from(vocab.size()) * 320 + (4 << 20)
    }

    /// Reads the whole vocabulary: a tenth of a second for 49,000 tokens.
    pub fn new(vocab: &dyn Vocab) -> Result<Self, String> {
        let size = vocab.size();
        if size > MOST_TOKENS {
            return Err(format!("a vocabulary of {size} tokens is too large"));
        }
        let mut words: Vec<Vec<u8>> = (0..size).map(|id| word(vocab, Token(id))).collect();
        let twins = part_twins(&mut words);
        let ends: Vec<u32> = (0..size).filter(|id| vocab.is_end(Token(*id))).collect();
        let end = ends.first().copied().unwrap_or(INVALID_TOKEN);
        let mut trie = TokTrie::from(&TokRxInfo::new(size, end), &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        let mut choosable = trie.alloc_token_set();
        for (id, word) in (0..).zip(&words) {
            if !word.is_empty() || ends.contains(&id) {
                choosable.allow_token(id);
            }
        }
        for (twin, _) in &twins {
            choosable.allow_token(*twin);
        }
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SLICES.map(String::from);
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| plain(&error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self {
            factory,
            env,
            choosable,
            ends,
            twins,
        })
    }

    /// Makes a form ready for one answer. The error says what is wrong and where, for the client to read.
    pub fn compile_form(self: &Arc<Self>, form: &Form, plan: &Plan) -> Result<Constraint, String> {
        match form {
            Form::Asked(format) => self.compile(format, plan),
            Form::Calls { grammar, or_text } => {
                let grammar = TopLevelGrammar::from_lark(grammar.clone());
                let matcher = self.matcher(grammar);
                let matcher =
                    matcher.map_err(|error| format!("the tools can't be enforced: {error}"))?;
                let guard = (!or_text).then(Guard::default);
                Ok(self.constraint(matcher, guard, plan))
            }
        }
    }

    /// Makes a format ready for one answer. The error says what is wrong and where, for the client to read.
    pub fn compile(self: &Arc<Self>, format: &Format, plan: &Plan) -> Result<Constraint, String> {
        let matcher = match &prepare(format)? {
            Prepared::Schema(schema) => self.matcher_of_schema(schema)?,
            Prepared::Text(grammar) => self
                .matcher(grammar.clone())
                .map_err(|error| format!("the {} can't be enforced: {error}", name(format)))?,
        };
        let guard = match format {
            Format::JsonObject | Format::JsonSchema(_) => Some(Guard::default()),
            Format::Regex(_) | Format::Lark(_) | Format::Gbnf(_) => None,
        };
        Ok(self.constraint(matcher, guard, plan))
    }

    fn constraint(
        self: &Arc<Self>,
        matcher: Matcher,
        guard: Option<Guard>,
        plan: &Plan,
    ) -> Constraint {
        let marker = match &plan.start {
            Start::Now => None,
            Start::After(text) => Some(Marker::new(text)),
        };
        Constraint {
            of: Arc::clone(self),
            fresh: (plan.again && marker.is_some()).then(|| matcher.deep_clone()),
            phase: if marker.is_some() {
                Phase::Free(Seen::of(plan.thinking))
            } else {
                Phase::Held
            },
            optional: plan.optional,
            marker,
            matcher,
            guard,
            mask: SimpleVob::new(),
        }
    }

    fn matcher(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        // A grammar that allows no first token is found here, and the most expensive mask is made off the engine's thread.
        let first = matcher.compute_mask_or_eos();
        match matcher.get_error() {
            Some(error) => Err(plain(&error)),
            None if first.is_ok_and(|mask| mask.is_zero()) => Err(NOTHING_FITS.into()),
            None => Ok(matcher),
        }
    }

    fn matcher_of_schema(&self, schema: &Value) -> Result<Matcher, String> {
        let matcher = |schema: Value| self.matcher(TopLevelGrammar::from_json_schema(schema));
        matcher(schema.clone()).map_err(|error| {
            let began = Instant::now();
            let refusal =
                |schema: Value| (began.elapsed() < LOCATING).then(|| matcher(schema).err())?;
            let at = schema::locate(schema, &error, refusal);
            schema::refused(at.as_deref().unwrap_or_default(), &error)
        })
    }

    pub(super) fn bytes(&self, token: Token) -> &[u8] {
        self.env.tok_trie().token(self.known(token))
    }

    pub(super) fn is_end(&self, token: Token) -> bool {
        self.ends.contains(&token.0)
    }

    /// The token by which the engine knows this one.
    pub(super) fn known(&self, token: Token) -> u32 {
        let twin = self.twins.binary_search_by_key(&token.0, |(twin, _)| *twin);
        twin.map_or(token.0, |at| self.twins[at].1)
    }

    /// The tokens of these bytes, if they can be cut so.
    pub(super) fn cut(&self, bytes: &[u8]) -> Option<Vec<u32>> {
        let trie = self.env.tok_trie();
        let tokens = trie.greedy_tokenize(bytes);
        let length: usize = tokens.iter().map(|token| trie.token(*token).len()).sum();
        (length == bytes.len()).then_some(tokens)
    }
}

/// The bytes by which grammars reach a token: none for control and end tokens, and for what is no text.
fn word(vocab: &dyn Vocab, token: Token) -> Vec<u8> {
    let mut bytes = Vec::new();
    if !vocab.is_end(token) {
        vocab.append_bytes(token, &mut bytes);
    }
    // 0xff marks special tokens in the engine's tree; no text contains it.
    if bytes.len() > MOST_TOKEN_BYTES || bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) {
        bytes.clear();
    }
    bytes
}

/// Takes the bytes from tokens that have those of a later one (the bytes of byte fallback come first), and says which they are.
fn part_twins(words: &mut [Vec<u8>]) -> Vec<(u32, u32)> {
    let mut order: Vec<u32> = (0..).take(words.len()).collect();
    order.sort_by(|a, b| words[*a as usize].cmp(&words[*b as usize]));
    let same = |a: &u32, b: &u32| words[*a as usize] == words[*b as usize];
    let mut twins = Vec::new();
    for group in order.chunk_by(same) {
        if let Some((kept, others)) = group.split_last()
            && !words[*kept as usize].is_empty()
        {
            twins.extend(others.iter().map(|other| (*other, *kept)));
        }
    }
    twins.sort_unstable();
    for (twin, _) in &twins {
        words[*twin as usize].clear();
    }
    twins
}

/// What the engine compiles.
enum Prepared {
    Schema(Value),
    Text(TopLevelGrammar),
}

fn prepare(format: &Format) -> Result<Prepared, String> {
    let bytes = match format {
        Format::JsonObject => return Ok(Prepared::Schema(schema::any_object())),
        Format::JsonSchema(schema) => {
            serde_json::to_vec(schema).map_or(usize::MAX, |json| json.len())
        }
        Format::Regex(text) | Format::Lark(text) | Format::Gbnf(text) => text.len(),
    };
    if bytes > MOST_FORMAT_BYTES {
        let name = name(format);
        return Err(format!(
            "the {name} has more than {MOST_FORMAT_BYTES} bytes: make it smaller"
        ));
    }
    Ok(match format {
        Format::JsonObject => Prepared::Schema(schema::any_object()),
        Format::JsonSchema(schema) => Prepared::Schema(schema::prepare(schema)?),
        Format::Regex(text) => Prepared::Text(TopLevelGrammar::from_regex(without_anchors(text))),
        Format::Lark(text) => {
            bounded_lark(text)?;
            Prepared::Text(TopLevelGrammar::from_lark(text.clone()))
        }
        Format::Gbnf(text) => Prepared::Text(TopLevelGrammar::from_lark(gbnf::to_lark(text)?)),
    })
}

fn name(format: &Format) -> &'static str {
    match format {
        Format::JsonObject | Format::JsonSchema(_) => "schema",
        Format::Regex(_) => "regular expression",
        Format::Lark(_) | Format::Gbnf(_) => "grammar",
    }
}

/// The engine's work doubles with each expression that a text has to match at once; schemas inside grammars would pass our checks by.
fn bounded_lark(grammar: &str) -> Result<(), String> {
    if has_intersections(grammar) {
        return Err(
            "the grammar can't be enforced: `&` and `~` can take for ever, so they may stand in strings and expressions only"
                .into(),
        );
    }
    if grammar.contains("%json") {
        return Err("the grammar can't be enforced: it can't contain `%json`".into());
    }
    Ok(())
}

/// Whether one of the operators stands outside of strings and expressions. Those end with their line at the latest, whatever a comment
/// contains.
fn has_intersections(grammar: &str) -> bool {
    grammar.lines().any(|line| {
        let mut within = None;
        let mut escaped = false;
        line.chars().any(|character| {
            match (within, character) {
                _ if escaped => escaped = false,
                (Some(_), '\\') => escaped = true,
                (Some(end), character) if end == character => within = None,
                (None, '"' | '/') => within = Some(character),
                (None, '&' | '~') => return true,
                _ => {}
            }
            false
        })
    })
}

/// The expression matches the answer as a whole, so anchors at its ends say nothing new; the engine knows none.
pub(super) fn without_anchors(expression: &str) -> &str {
    let expression = expression.strip_prefix('^').unwrap_or(expression);
    match expression.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0 => rest,
        _ => expression,
    }
}

/// The engine's message without its account of itself.
pub(super) fn plain(error: &str) -> String {
    let end = ["<non-verbose/>", "<state>", "<backtrace>"]
        .iter()
        .filter_map(|tag| error.find(tag))
        .min();
    let error = error[..end.unwrap_or(error.len())].trim();
    if error.starts_with("panic:") {
        return "the grammar engine can't take it".into();
    }
    if error.contains("NoExtension") {
        return NOTHING_FITS.into();
    }
    if error.starts_with("oneOf constraints") {
        return "the branches of `oneOf` can't be told apart: give each of them a required property with another `const`, or use `anyOf`".into();
    }
    if let Some(at) = error.find("regex parse error:")
        && let Some((_, why)) = error[at..].rsplit_once("error: ")
    {
        return format!("the expression can't be read: {why}");
    }
    error.chars().take(500).collect()
}
