//! Whether a file's vocabulary tokenises as its publisher's `tokenizer.json` does.
//!
//! The `tokenizers` crate is the oracle here and nowhere else: what is served is tokenised by the file's own vocabulary. Differences
//! that are known and harmless are counted apart.

use super::nasty;
use std::path::Path;
use tokenizers::normalizers::NFC;
use tokenizers::{NormalizedString, Normalizer, Tokenizer};

/// Bytes of a `tokenizer.json` at most; Gemma 3's has 33 million.
const MOST_BYTES: u64 = 256 << 20;
/// Differences that are shown.
const MOST_SHOWN: usize = 3;

/// Asks a file's vocabulary: for each text, and whether names of control tokens in it are those tokens, its token ids.
pub type Ask<'a> = dyn FnMut(&[(String, bool)]) -> Result<Vec<Vec<u32>>, String> + 'a;

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parity {
    /// Texts that were compared, each with the names of special tokens as those tokens, and as text.
    pub texts: usize,
    /// Texts that are equal only after Unicode NFC: the publisher applies it and llama.cpp does not.
    pub only_after_nfc: usize,
    /// Texts that are equal but for a literal `▁`, which some vocabularies use for a blank.
    pub only_without_blank_sign: usize,
    /// Texts that are equal but for names of special tokens, of which llama.cpp knows more than the publisher.
    pub only_special_names: usize,
    /// Texts that are not equal.
    pub different: usize,
    /// The first of these.
    pub examples: Vec<Difference>,
}

/// A text that is tokenised in two ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The text.
    pub text: String,
    /// What the publisher makes of it.
    pub published: Vec<u32>,
    /// What the file makes of it.
    pub ours: Vec<u32>,
}

/// Compares a file's vocabulary, asked through `ask`, with a `tokenizer.json`.
pub fn compare(tokenizer: &Path, ask: &mut Ask<'_>) -> Result<Parity, String> {
    let mut published = load(tokenizer)?;
    let texts = Texts::new();
    let with_special = texts.verdicts(&mut published, true, ask)?;
    let as_text = texts.verdicts(&mut published, false, ask)?;
    let special: Vec<String> = published
        .get_added_tokens_decoder()
        .into_values()
        .filter(|token| token.special)
        .map(|token| token.content)
        .collect();
    let mut parity = Parity {
        texts: texts.raw.len(),
        ..Parity::default()
    };
    for ((text, with_special), as_text) in texts.raw.iter().zip(with_special).zip(as_text) {
        let has_special = special.iter().any(|name| text.contains(name));
        parity.count(text, together(with_special, as_text, has_special));
    }
    Ok(parity)
}

/// The outcome for one text.
enum Verdict {
    Same,
    AfterNfc,
    WithoutBlankSign,
    SpecialNames,
    Different { published: Vec<u32>, ours: Vec<u32> },
}

/// What the two ways to read a text come to. Where one of them agrees, plain text is tokenised alike, and what differs is which
/// names are special. That is harmless where llama.cpp takes a name for a token that the publisher does not have as a special
/// one, and where it takes one for text that the publisher reads as a token.
fn together(with_special: Verdict, as_text: Verdict, has_special: bool) -> Verdict {
    match (with_special, as_text) {
        (Verdict::Same, Verdict::Different { published, ours }) if ours.len() > published.len() => {
            Verdict::SpecialNames
        }
        (Verdict::Different { .. }, Verdict::Same) if !has_special => Verdict::SpecialNames,
        (different @ Verdict::Different { .. }, _) | (_, different @ Verdict::Different { .. }) => {
            different
        }
        (Verdict::Same, other) | (other, _) => other,
    }
}

impl Parity {
    fn count(&mut self, text: &str, verdict: Verdict) {
        match verdict {
            Verdict::Same => {}
            Verdict::AfterNfc => self.only_after_nfc += 1,
            Verdict::WithoutBlankSign => self.only_without_blank_sign += 1,
            Verdict::SpecialNames => self.only_special_names += 1,
            Verdict::Different { published, ours } => {
                self.different += 1;
                if self.examples.len() < MOST_SHOWN {
                    self.examples.push(Difference {
                        text: text.to_owned(),
                        published,
                        ours,
                    });
                }
            }
        }
    }

    /// How the two disagree, with the first examples.
    pub fn disagreement(&self) -> String {
        let shown = |it: &Difference| {
            let (ours, published) = (ids(&it.ours), ids(&it.published));
            format!("{} gives {ours} instead of {published}", shown(&it.text))
        };
        let examples: Vec<String> = self.examples.iter().map(shown).collect();
        format!(
            "{} of {} texts give other tokens; {}",
            self.different,
            self.texts,
            examples.join("; ")
        )
    }

    /// The harmless differences, to be put behind what is said of the rest; empty if there are none.
    pub fn known_differences(&self) -> String {
        let kinds = [
            (
                self.only_after_nfc,
                "after Unicode NFC, which the publisher applies and llama.cpp does not",
            ),
            (self.only_without_blank_sign, "but for a literal ▁"),
            (
                self.only_special_names,
                "but for names of special tokens, of which llama.cpp knows more",
            ),
        ];
        let found = kinds.into_iter().filter(|(count, _)| *count > 0);
        let notes: Vec<String> = found
            .map(|(count, what)| format!("{count} of them {what}"))
            .collect();
        if notes.is_empty() {
            return String::new();
        }
        format!(" (note: {})", notes.join("; "))
    }
}

/// The texts, and the same in the forms in which known differences vanish.
struct Texts {
    raw: Vec<String>,
    composed: Vec<String>,
    blank: Vec<String>,
}

impl Texts {
    fn new() -> Self {
        let raw = nasty::texts();
        Self {
            composed: raw.iter().map(|text| composed(text)).collect(),
            blank: raw.iter().map(|text| text.replace('▁', " ")).collect(),
            raw,
        }
    }

    fn verdicts(
        &self,
        published: &mut Tokenizer,
        special: bool,
        ask: &mut Ask<'_>,
    ) -> Result<Vec<Verdict>, String> {
        published.set_encode_special_tokens(!special);
        let mut answers = |texts: &[String]| {
            let questions: Vec<_> = texts.iter().map(|text| (text.clone(), special)).collect();
            let answers = ask(&questions)?;
            if answers.len() == texts.len() {
                return Ok(answers);
            }
            Err("the vocabulary does not answer each text".to_owned())
        };
        let ours = answers(&self.raw)?;
        let (composed, blank) = (answers(&self.composed)?, answers(&self.blank)?);
        let mut verdicts = Vec::with_capacity(ours.len());
        for (at, ours) in ours.into_iter().enumerate() {
            let theirs = encode(published, &self.raw[at])?;
            verdicts.push(if ours == theirs {
                Verdict::Same
            } else if self.composed[at] != self.raw[at] && composed[at] == theirs {
                Verdict::AfterNfc
            } else if self.blank[at] != self.raw[at]
                && blank[at] == encode(published, &self.blank[at])?
            {
                Verdict::WithoutBlankSign
            } else {
                Verdict::Different {
                    published: theirs,
                    ours,
                }
            });
        }
        Ok(verdicts)
    }
}

fn load(path: &Path) -> Result<Tokenizer, String> {
    let unusable = |why: &dyn std::fmt::Display| {
        format!(
            "{} can't be used as a tokenizer.json: {why}",
            path.display()
        )
    };
    let found = std::fs::metadata(path).map_err(|error| unusable(&error))?;
    if found.len() > MOST_BYTES {
        return Err(unusable(&"it has more than 256 MiB"));
    }
    let mut tokenizer = Tokenizer::from_file(path).map_err(|error| unusable(&error))?;
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|error| unusable(&error))?;
    Ok(tokenizer)
}

fn encode(published: &Tokenizer, text: &str) -> Result<Vec<u32>, String> {
    let encoding = published.encode_fast(text, false);
    encoding
        .map(|encoding| encoding.get_ids().to_vec())
        .map_err(|error| format!("the published tokenizer fails on {text:?}: {error}"))
}

fn composed(text: &str) -> String {
    let mut text = NormalizedString::from(text);
    match NFC.normalize(&mut text) {
        Ok(()) => text.get().to_owned(),
        Err(_) => text.get_original().to_owned(),
    }
}

/// A text in quotes, cut if it is long.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(24).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}

fn ids(tokens: &[u32]) -> String {
    let first: Vec<String> = tokens.iter().take(8).map(u32::to_string).collect();
    let more = if tokens.len() > 8 { " …" } else { "" };
    format!("[{}{more}]", first.join(" "))
}
