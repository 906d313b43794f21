//! Models: which are known by name, which are on disk, what is inside their files, and which one a request means.
//!
//! Nothing here computes or talks to clients. A model's file is a stranger's: whatever is in it, reading it ends in facts or in
//! one sentence.

pub mod catalogue;
pub mod digest;
pub mod download;
pub mod gguf;
pub mod memory;
pub mod nasty;
#[cfg(feature = "tokenizers")]
pub mod parity;
pub mod reference;
pub mod store;

mod collection;
mod facts;
mod families;
mod library;
mod tuned;

pub use catalogue::{Catalogue, Entry};
pub use collection::{Collection, CollectionError, FindError};
pub use digest::{Digest, verify};
pub(crate) use facts::Identity;
pub use facts::{Facts, Model, SamplingDefaults};
pub use families::Family;
pub use library::{Library, Listed, NoModel, SharedName};
pub use reference::{HubFile, ModelName, ModelRef};
pub use store::Store;
pub use tuned::{Figures, Tuned, Tunings};

/// Characters of an unknown name that are shown.
const LONGEST_SHOWN: usize = 100;

/// A name as it goes into a message: nobody needs a megabyte of it back.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
