//! How a model is called, and what a name may be.
//!
//! Every name that comes from outside (a request, the command line, a TOML file, a manifest) becomes one of these types before
//! anything is done with it. None of them can lead out of the store's directory, and none can be taken for an option.

use super::catalogue::{Catalogue, Entry};
use super::digest::Digest;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{MAIN_SEPARATOR, PathBuf};
use std::str::FromStr;

/// Bytes of a name at most. A file name may have 255 on common file systems, and `.gguf.partial.json` is put behind it.
pub const LONGEST_NAME: usize = 200;

/// What begins the name of a file on the hub.
pub const HUB_PREFIX: &str = "hf:";

/// The end of a model file's name.
pub const GGUF: &str = ".gguf";

/// A name that can't be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{shown:?} can't be a model's name: {problem}")]
pub struct NameError {
    /// The name, cut if it is long.
    pub shown: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl NameError {
    fn new(name: &str, problem: &'static str) -> Self {
        Self {
            shown: super::shortened(name),
            problem,
        }
    }
}

/// A file in a repository of the hub: `hf:owner/name/file@revision`.
///
/// Letters, digits and `-_.+` only, no component that is empty or begins with `-` or `.`, so it needs no escaping in a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "RawHubFile")]
pub struct HubFile {
    repo: String,
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHubFile {
    repo: String,
    file: String,
    revision: Option<String>,
}

impl TryFrom<RawHubFile> for HubFile {
    type Error = NameError;

    fn try_from(raw: RawHubFile) -> Result<Self, NameError> {
        Self::new(&raw.repo, &raw.file, raw.revision.as_deref())
    }
}

impl HubFile {
    /// A file of repository `repo` (`owner/name`); `file` may have folders; without a revision it is the newest.
    pub fn new(repo: &str, file: &str, revision: Option<&str>) -> Result<Self, NameError> {
        let name = Self {
            repo: repo.to_owned(),
            file: file.to_owned(),
            revision: revision.map(str::to_owned),
        };
        let whole = name.to_string();
        let refuse = |problem| Err(NameError::new(&whole, problem));
        if whole.len() > LONGEST_NAME {
            return refuse("it is too long (200 bytes at most)");
        }
        if repo.split('/').count() != 2 {
            return refuse("a repository is owner/name");
        }
        let parts = [repo, file].into_iter().chain(revision);
        match parts
            .flat_map(|part| part.split('/'))
            .find_map(wrong_component)
        {
            Some(problem) => refuse(problem),
            None => Ok(name),
        }
    }

    /// Reads `hf:owner/name/file.gguf@revision`, with or without the prefix and the revision.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bare = text.strip_prefix(HUB_PREFIX).unwrap_or(text);
        let (path, revision) = match bare.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (bare, None),
        };
        let mut parts = path.splitn(3, '/');
        let (Some(owner), Some(name), Some(file)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(NameError::new(
                text,
                "a file on the hub is hf:owner/name/file.gguf",
            ));
        };
        Self::new(&format!("{owner}/{name}"), file, revision)
    }

    /// The repository, `owner/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The file's path in it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The commit, branch or tag that was asked for.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The same file at another revision.
    pub fn at(&self, revision: &str) -> Result<Self, NameError> {
        Self::new(&self.repo, &self.file, Some(revision))
    }
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HUB_PREFIX}{}/{}", self.repo, self.file)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// What is wrong with one component of a hub file's name.
fn wrong_component(part: &str) -> Option<&'static str> {
    if part.is_empty() {
        return Some("a part of it is empty");
    }
    if part.starts_with(['-', '.']) {
        return Some("no part of it may begin with - or .");
    }
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    (!part.chars().all(known)).then_some("use letters, digits and -_.+ only")
}

/// The name of a model in the store: its own (a catalogue name, or the stem of a file that was put there), or a hub file's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Own(String),
    Hub(HubFile),
}

impl ModelName {
    /// Checks a name: `gemma-3-1b`, `gemma-3-1b.gguf`, `My model (2)`, `hf:owner/name/file.gguf`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.starts_with(HUB_PREFIX) {
            return Ok(Self(Kind::Hub(gguf_on_hub(text)?)));
        }
        Self::own(text.strip_suffix(GGUF).unwrap_or(text))
    }

    /// Checks the stem of a file: nothing is read into it.
    pub fn own(stem: &str) -> Result<Self, NameError> {
        match wrong_own(stem) {
            Some(problem) => Err(NameError::new(stem, problem)),
            None => Ok(Self(Kind::Own(stem.to_owned()))),
        }
    }

    /// The hub file that it is, if it is one.
    pub fn hub(&self) -> Option<&HubFile> {
        match &self.0 {
            Kind::Own(_) => None,
            Kind::Hub(hub) => Some(hub),
        }
    }

    /// The name of its file in the store, without `.gguf`. Different names have different stems, but for an own name that spells out
    /// a hub file's stem.
    pub fn stem(&self) -> String {
        match &self.0 {
            Kind::Own(name) => name.clone(),
            Kind::Hub(hub) => hub_stem(hub),
        }
    }
}

impl From<HubFile> for ModelName {
    fn from(hub: HubFile) -> Self {
        Self(Kind::Hub(hub))
    }
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            // It is read back without its end, so one that is part of the name needs another.
            Kind::Own(name) if name.ends_with(GGUF) => write!(f, "{name}{GGUF}"),
            Kind::Own(name) => f.write_str(name),
            Kind::Hub(hub) => hub.fmt(f),
        }
    }
}

fn gguf_on_hub(text: &str) -> Result<HubFile, NameError> {
    let hub = HubFile::parse(text)?;
    if hub.file().ends_with(GGUF) {
        Ok(hub)
    } else {
        Err(NameError::new(
            text,
            "a model on the hub is a file that ends in .gguf",
        ))
    }
}

/// What is wrong with a name that is not a hub file's. Anything goes that people call their files, but for what a path, a
/// shell, a URL or a terminal would understand as something else.
fn wrong_own(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > LONGEST_NAME {
        return Some("it is too long (200 bytes at most)");
    }
    if name.starts_with(['-', '.']) || name.starts_with(char::is_whitespace) {
        return Some("it may not begin with -, . or a blank");
    }
    if name.ends_with(char::is_whitespace) {
        return Some("it may not end with a blank");
    }
    name.chars().any(is_refused).then_some(
        "it has a character that is not allowed (such as / \\ % : * ? or a control character)",
    )
}

fn is_refused(c: char) -> bool {
    let invisible = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    c.is_control() || invisible || "/\\%:*?\"<>|".contains(c)
}

/// `OWNER--REPO--FILE@REVISION`, slashes as `--`. Where that could stand for two names, or is too long, it is cut and a digest
/// follows: `~` is in no hub name.
fn hub_stem(hub: &HubFile) -> String {
    let model = hub.file().strip_suffix(GGUF);
    let mut stem = format!("{}/{}", hub.repo(), model.unwrap_or(hub.file()));
    if let Some(revision) = hub.revision() {
        stem = format!("{stem}@{revision}");
    }
    let unclear =
        model.is_none() || stem.contains("--") || stem.contains("-/") || stem.contains("-@");
    let stem = stem.replace('/', "--");
    if !unclear && stem.len() <= LONGEST_NAME {
        return stem;
    }
    let digest = Digest::of(hub.to_string().as_bytes()).to_string();
    let tail = &digest[..16];
    // All of it is ASCII, so every cut is between characters.
    format!("{}~{tail}", &stem[..stem.len().min(LONGEST_NAME - 17)])
}

/// What a person means by a model on the command line.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelRef {
    /// A model of the catalogue.
    Known(Box<Entry>),
    /// A file on the hub.
    Hub(HubFile),
    /// A file here.
    Path(PathBuf),
}

/// Words that stand for no model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    /// The name can't be one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The catalogue does not have it.
    #[error("no model is called {asked:?}{}", hint(near))]
    Unknown {
        /// The name that was asked for, cut if it is long.
        asked: String,
        /// Names that look like it.
        near: Vec<String>,
    },
}

fn hint(near: &[String]) -> String {
    if near.is_empty() {
        return ": `pocket-llm list` shows those that are known; a file needs its path, a file on the hub hf:owner/name/file.gguf"
            .into();
    }
    format!(": did you mean {}?", near.join(" or "))
}

impl ModelRef {
    /// Understands `hf:owner/name/file.gguf@revision`, a name or an alias of the catalogue, and a path: words with a separator, or
    /// the name of a file that exists.
    pub fn parse(text: &str, catalogue: &Catalogue) -> Result<Self, RefError> {
        if text.starts_with(HUB_PREFIX) {
            return Ok(Self::Hub(gguf_on_hub(text)?));
        }
        // Before paths, because publishers' names have a slash: google/gemma-3-1b-it.
        if let Some(entry) = catalogue.find(text) {
            return Ok(Self::Known(Box::new(entry.clone())));
        }
        let path = PathBuf::from(text);
        if text.contains(['/', MAIN_SEPARATOR]) || path.is_file() {
            return Ok(Self::Path(path));
        }
        Err(RefError::Unknown {
            asked: super::shortened(text),
            near: catalogue.near(text),
        })
    }
}
