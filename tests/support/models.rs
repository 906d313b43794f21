//! Where the test models are. They are other people's, so they are fetched, not committed.

use std::path::PathBuf;

/// The path of a test model's file: in `POCKET_LLM_TEST_MODELS`, else in the cache that `make test-models` fills.
pub(crate) fn test_model(name: &str) -> PathBuf {
    let folder = std::env::var_os("POCKET_LLM_TEST_MODELS").map_or_else(cached, PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "there is no test model {}: run `make test-models`",
        path.display()
    );
    path
}

fn cached() -> PathBuf {
    if let Some(cache) = std::env::var_os("POCKET_LLM_CACHE") {
        return PathBuf::from(cache).join("test-models");
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    cache.unwrap_or_default().join("pocket-llm/test-models")
}
