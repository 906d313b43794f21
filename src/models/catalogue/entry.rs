//! One model of the catalogue, and how its file is read.

use super::CatalogueError;
use super::fields::Fields;
use crate::models::digest::Digest;
use crate::models::reference::{GGUF, HubFile, LONGEST_NAME, ModelName};

/// A known model.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name, which is also the stem of its file in the store.
    pub name: String,
    /// Further names that it answers to, in any case.
    pub aliases: Vec<String>,
    /// Its name for people; it answers to this one too.
    pub display_name: String,
    /// One sentence about it.
    pub description: String,
    /// Parameters, as people say it: `1B`.
    pub parameters: String,
    /// Where its file is.
    pub source: Source,
    /// Whether the repository wants an account that accepted its terms.
    pub login: bool,
    /// SPDX identifier or name of the licence.
    pub licence: String,
    /// The sentence that the licence wants beside answers.
    pub licence_notice: Option<String>,
    /// Tokens that it was trained with at most.
    pub context: u32,
    /// What its publisher, or the phone app, recommends.
    pub sampling: Sampling,
    /// A chat template (Jinja) instead of the file's own, which is broken.
    pub chat_template: Option<String>,
    /// The name of a smaller model with the same vocabulary, for speculative decoding.
    pub draft: Option<String>,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// The publisher's `tokenizer.json`, or a copy that needs no login.
    pub tokenizer: Option<HubFile>,
}

/// Where a model's file is, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file on the hub.
    pub hub: HubFile,
    /// Its size, where it is known with certainty.
    pub bytes: Option<u64>,
    /// Its digest, where it is known with certainty.
    pub sha256: Option<Digest>,
}

/// Sampling values where a request names none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 always takes the likeliest token.
    pub temperature: f32,
    /// Tokens that are considered; 0 for all.
    pub top_k: u32,
    /// Probability mass that is considered.
    pub top_p: f32,
    /// Share of the likeliest token's probability that a token needs.
    pub min_p: Option<f32>,
    /// Divisor for logits of tokens that have occurred.
    pub repeat_penalty: Option<f32>,
}

/// Something that a model can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Capability {
    /// Answers text.
    Text,
    /// Its template knows tools.
    Tools,
    /// Thinks aloud before it answers.
    Thinking,
    /// Writes code.
    Code,
    /// Sees images.
    Vision,
}

impl Capability {
    const ALL: [Self; 5] = [
        Self::Text,
        Self::Tools,
        Self::Thinking,
        Self::Code,
        Self::Vision,
    ];

    /// Its word in a catalogue file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Tools => "tools",
            Self::Thinking => "thinking",
            Self::Code => "code",
            Self::Vision => "vision",
        }
    }
}

impl Entry {
    /// All that it answers to: the name, the display name, then the aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [&self.name, &self.display_name]
            .into_iter()
            .chain(&self.aliases)
            .map(String::as_str)
    }

    /// Its name in the store.
    ///
    /// # Panics
    ///
    /// If `name` was set to something that can't be a name.
    pub fn model_name(&self) -> ModelName {
        ModelName::parse(&self.name).expect("names of entries were checked when they were read")
    }

    /// Whether it can do this.
    pub fn can(&self, what: Capability) -> bool {
        self.capabilities.contains(&what)
    }
}

/// The key that the name at this place of [`Entry::names`] stands under.
pub(super) fn key_of(at: usize) -> &'static str {
    match at {
        0 => "name",
        1 => "display_name",
        _ => "aliases",
    }
}

/// Reads one file.
pub(super) fn read(file: &str, text: &str) -> Result<Entry, CatalogueError> {
    let mut fields = Fields::parse(file, text)?;
    let entry = Entry {
        name: name(&mut fields)?,
        aliases: aliases(&mut fields)?,
        display_name: fields.text("display_name")?,
        description: fields.text("description")?,
        parameters: fields.text("parameters")?,
        source: source(&mut fields)?,
        login: fields.flag("login")?,
        licence: fields.text("licence")?,
        licence_notice: fields.optional_text("licence_notice")?,
        context: fields.whole("context", 1, 1 << 24)?,
        sampling: sampling(&mut fields)?,
        chat_template: fields.optional_text("chat_template")?,
        draft: fields.optional_text("draft")?,
        capabilities: capabilities(&mut fields)?,
        tokenizer: tokenizer(&mut fields)?,
    };
    fields.end()?;
    Ok(entry)
}

/// It becomes the name of a file, and must not look like anything else.
fn name(fields: &mut Fields) -> Result<String, CatalogueError> {
    let name = fields.text("name")?;
    let simple = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    if !name.chars().all(simple) {
        return Err(fields.wrong("name", "use lower-case letters, digits, - and ."));
    }
    match ModelName::parse(&name) {
        Ok(checked) if checked.to_string() == name => Ok(name),
        Ok(_) => Err(fields.wrong("name", "leave .gguf out")),
        Err(error) => Err(fields.wrong("name", error.problem)),
    }
}

fn aliases(fields: &mut Fields) -> Result<Vec<String>, CatalogueError> {
    let aliases = fields.texts("aliases")?;
    let bad = |alias: &&String| {
        alias.trim() != alias.as_str() || alias.is_empty() || alias.len() > LONGEST_NAME
    };
    match aliases.iter().find(bad) {
        Some(alias) => Err(fields.wrong("aliases", &format!("{alias:?} is no name"))),
        None => Ok(aliases),
    }
}

fn source(fields: &mut Fields) -> Result<Source, CatalogueError> {
    let mut table = fields.table("source")?;
    let hub = hub_file(&mut table)?;
    if !hub.file().ends_with(GGUF) {
        return Err(table.wrong("file", "a model is a file that ends in .gguf"));
    }
    let bytes = table.optional_bytes("bytes")?;
    let sha256 = match table.optional_text("sha256")? {
        Some(text) => Some(
            text.parse()
                .map_err(|error| table.wrong("sha256", &format!("{error}")))?,
        ),
        None => None,
    };
    table.end()?;
    Ok(Source { hub, bytes, sha256 })
}

fn tokenizer(fields: &mut Fields) -> Result<Option<HubFile>, CatalogueError> {
    let Some(mut table) = fields.optional_table("tokenizer")? else {
        return Ok(None);
    };
    let hub = hub_file(&mut table)?;
    table.end()?;
    Ok(Some(hub))
}

fn hub_file(table: &mut Fields) -> Result<HubFile, CatalogueError> {
    let (repo, file) = (table.text("repo")?, table.text("file")?);
    let revision = table.optional_text("revision")?;
    HubFile::new(&repo, &file, revision.as_deref())
        .map_err(|error| table.wrong("repo", &format!("{error}")))
}

fn sampling(fields: &mut Fields) -> Result<Sampling, CatalogueError> {
    let mut table = fields.table("sampling")?;
    let sampling = Sampling {
        temperature: table.number("temperature", 0.0, 2.0)?,
        top_k: table.whole("top_k", 0, 1_000_000)?,
        top_p: table.number("top_p", 0.0, 1.0)?,
        min_p: table.optional_number("min_p", 0.0, 1.0)?,
        repeat_penalty: table.optional_number("repeat_penalty", 0.1, 10.0)?,
    };
    table.end()?;
    Ok(sampling)
}

fn capabilities(fields: &mut Fields) -> Result<Vec<Capability>, CatalogueError> {
    let mut known = Vec::new();
    for word in fields.texts("capabilities")? {
        let capability = Capability::ALL
            .into_iter()
            .find(|capability| capability.word() == word);
        known.push(capability.ok_or_else(|| {
            let words = Capability::ALL.map(Capability::word).join(", ");
            fields.wrong("capabilities", &format!("{word:?} is none of {words}"))
        })?);
    }
    Ok(known)
}
