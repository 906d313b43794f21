//! Huge pages, and what is worth them: weights and cells, all of which each token reads, lie in pages of 2 MiB where the system gives some.
//!
//! glibc asks the kernel for them for whatever large it allocates, if a tunable says so (`glibc.malloc.hugetlb=1`, since 2.35, which
//! workers are started with). What comes and goes with requests, or has parts that may never be used, would cost memory in them, so they
//! are off for the process but while something asks for [`HugePages`]. The switch is `PR_SET_THP_DISABLE` of `prctl(2)`: it decides about
//! pages that are touched from then on, not about those that are there.

use rustix::thread::{disable_transparent_huge_pages, transparent_huge_pages_are_disabled};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// How many ask, in all threads of this process.
static ASKING: Mutex<usize> = Mutex::new(0);

/// While this lives, large blocks that are allocated and touched may be of huge pages.
#[must_use]
#[derive(Debug)]
pub struct HugePages(());

impl HugePages {
    /// Where the process was started without huge pages it goes on without.
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
        if *asking == 0 {
            disable(true);
        }
    }
}

fn asking() -> MutexGuard<'static, usize> {
    ASKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails on kernels without huge pages, where there is nothing to decide.
fn disable(disabled: bool) {
    static OURS: OnceLock<bool> = OnceLock::new();
    if *OURS.get_or_init(|| transparent_huge_pages_are_disabled() == Ok(false)) {
        let _ = disable_transparent_huge_pages(disabled);
    }
}
