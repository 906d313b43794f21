//! Files that look like models, random numbers that can be repeated, and what a test does with a download.

use super::hub::Hub;
use pocket_llm::models::download::{DownloadError, Existing, Progress, Pulled, Puller, Settings};
use pocket_llm::models::{Digest, HubFile, ModelName, ModelRef, Store};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file that every hub of these tests has.
pub(crate) const NAME: &str = "hf:owner/name/model.gguf";

/// Random numbers from a seed (`SplitMix64`).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

/// A sound GGUF file (version 3) with one tensor of random bytes, of this length in all.
pub(crate) fn gguf(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    text(&mut bytes, "general.architecture");
    bytes.extend(8_u32.to_le_bytes());
    text(&mut bytes, "llama");
    text(&mut bytes, "noise.weight");
    bytes.extend(1_u32.to_le_bytes());
    // Dimension, type I8 and offset follow; then zeros up to a multiple of 32.
    let begin = (bytes.len() + 8 + 4 + 8).next_multiple_of(32);
    bytes.extend(((length - begin) as u64).to_le_bytes());
    bytes.extend(24_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.resize(begin, 0);
    let mut random = Random(seed);
    while bytes.len() < length {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::of(bytes)
}

/// A store in a directory that goes with it, and a client of a hub.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) puller: Puller,
}

impl Place {
    pub(crate) fn new(hub: &Hub) -> Self {
        Self::with(hub, settings())
    }

    pub(crate) fn with(hub: &Hub, settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            puller: Puller {
                store: Store::open(folder.path()).unwrap(),
                hub: pocket_llm::models::download::Hub::new(&hub.endpoint(), None).unwrap(),
                settings,
            },
            folder,
        }
    }

    pub(crate) fn pull(&self) -> Result<Pulled, DownloadError> {
        self.puller
            .pull(&reference(), Existing::Trust, &Progress::default())
    }

    /// Where the file will be.
    pub(crate) fn target(&self) -> PathBuf {
        let name = ModelName::parse(NAME).unwrap();
        self.puller.store.place(&name)
    }

    pub(crate) fn partial(&self) -> PathBuf {
        with_end(&self.target(), ".partial")
    }

    /// What was downloaded.
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        std::fs::read(self.target()).ok()
    }

    /// Bytes of the partial.
    pub(crate) fn partial_length(&self) -> usize {
        std::fs::metadata(self.partial()).map_or(0, |found| usize::try_from(found.len()).unwrap())
    }

    /// Nothing lies there but the model, its manifest and its lock.
    pub(crate) fn assert_tidy(&self) {
        let mut names: Vec<String> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            // A manifest that a kill cut short; `clean` removes it.
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        let name = "owner--name--model.gguf";
        assert_eq!(
            names,
            [
                name.to_owned(),
                format!("{name}.json"),
                format!("{name}.lock")
            ]
        );
    }
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    pocket_llm::models::store::with_end(path, end)
}

pub(crate) fn reference() -> ModelRef {
    ModelRef::Hub(HubFile::parse(NAME).unwrap())
}

/// As patient as a product's, but in milliseconds.
pub(crate) fn settings() -> Settings {
    Settings {
        backoff_base: Duration::from_millis(1),
        backoff_cap: Duration::from_millis(4),
        retry_after_cap: Duration::from_millis(20),
        ..Settings::default()
    }
}
