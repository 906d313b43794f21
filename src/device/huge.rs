//! Huge pages, and what is worth them: cells and repacked weights, all of which each token reads, lie in pages of 2 MiB where the system
//! gives some.
//!
//! glibc asks the kernel for them for whatever large it allocates, if a tunable says so ([`TUNABLE`], since 2.35). What comes and goes with
//! requests, or has parts that may never be used, would cost memory in them. So they are off for a worker but while something holds
//! [`HugePages`]: a model that is loaded, or a context that is made. The switch is `PR_SET_THP_DISABLE` of `prctl(2)`. What was touched
//! before keeps its pages, and nothing is moved together later: the kernel leaves processes alone that have huge pages off. The context for
//! embeddings is there for a minute, and does without.
//!
//! All this is done only [where it is of use](are_of_use). Sources: the kernel's transhuge.rst, glibc's manual (Memory Allocation Tunables).

use super::topology::text;
use rustix::thread::{disable_transparent_huge_pages, transparent_huge_pages_are_disabled};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What glibc is told in `GLIBC_TUNABLES`.
pub const TUNABLE: &str = "glibc.malloc.hugetlb=1";
/// Larger pages, of systems whose small ones have 16 or 64 KiB, would waste too much at the ends of blocks, and malloc's heap grows by one.
const LARGEST: u64 = 2 << 20;

/// Whether this process was started where asking is of use: the system gives huge pages to who asks, of a size that wastes little, and
/// lets us say for what. Where it gives them to all (`always`), nobody needs to ask; glibc doesn't either.
pub fn are_of_use() -> bool {
    static OF_USE: OnceLock<bool> = OnceLock::new();
    *OF_USE.get_or_init(|| {
        let folder = Path::new(FOLDER);
        asked_for(folder) && transparent_huge_pages_are_disabled() == Ok(false)
    })
}

const FOLDER: &str = "/sys/kernel/mm/transparent_hugepage";

/// The same by the files in this folder.
fn asked_for(folder: &Path) -> bool {
    let size = text(&folder.join("hpage_pmd_size")).and_then(|size| size.trim().parse().ok());
    size.is_some_and(|size: u64| size <= LARGEST) && chosen(folder).as_deref() == Some("madvise")
}

/// What the system gives, as far as the kernel has huge pages: `always`, `madvise` (to who asks) or `never`.
pub fn setting() -> Option<String> {
    chosen(Path::new(FOLDER))
}

/// `always [madvise] never` → `madvise`.
fn chosen(folder: &Path) -> Option<String> {
    let words = text(&folder.join("enabled"))?;
    let mut words = words.split_whitespace();
    let word = words.find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))?;
    Some(word.to_owned())
}

/// From here on this process has huge pages only while something holds [`HugePages`].
pub fn off() {
    disable(*asking() == 0);
}

/// While this lives, large blocks that are allocated and touched may be of huge pages.
#[must_use]
#[derive(Debug)]
pub struct HugePages(());

impl HugePages {
    /// Where they are of no use, nothing changes.
    pub fn allow() -> Self {
        let mut asking = asking();
        *asking += 1;
        disable(false);
        Self(())
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let mut asking = asking();
        *asking -= 1;
        disable(*asking == 0);
    }
}

/// How many hold some, in all threads of this process.
fn asking() -> MutexGuard<'static, usize> {
    static ASKING: Mutex<usize> = Mutex::new(0);
    ASKING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn disable(disabled: bool) {
    // It was possible to ask a moment ago; where it fails all the same, some memory is lost and no answer.
    if are_of_use()
        && let Err(error) = disable_transparent_huge_pages(disabled)
    {
        tracing::debug!(%error, disabled, "huge pages stay as they are");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cgroup::tests::tree;

    fn here(enabled: &str, size: &str) -> (Option<String>, bool) {
        let folder = tree(&[("enabled", enabled), ("hpage_pmd_size", size)]);
        (chosen(folder.path()), asked_for(folder.path()))
    }

    #[test]
    fn they_are_asked_for_where_the_system_wants_to_be_asked_and_they_are_small() {
        let of = |enabled, size| {
            let (word, asked_for) = here(enabled, size);
            (word.unwrap_or_default(), asked_for)
        };
        let asked = "always [madvise] never\n";
        assert_eq!(of(asked, "2097152\n"), ("madvise".into(), true));
        assert_eq!(of(asked, "33554432\n"), ("madvise".into(), false));
        assert_eq!(of(asked, ""), ("madvise".into(), false));
        assert_eq!(
            of("[always] madvise never\n", "2097152\n"),
            ("always".into(), false)
        );
        assert_eq!(
            of("always madvise [never]\n", "2097152\n"),
            ("never".into(), false)
        );
        assert_eq!(of("0", "2097152\n"), (String::new(), false));
        assert!(!asked_for(Path::new("/nowhere")));
    }
}
