//! Where the store is when nobody says.

use super::StoreError;
use std::ffi::OsString;
use std::path::PathBuf;

/// The platform's place for a user's data: `$XDG_DATA_HOME/pocket-llm/models`, else `~/.local/share/pocket-llm/models`; on macOS
/// `~/Library/Application Support/pocket-llm/models`.
pub fn default_root() -> Result<PathBuf, StoreError> {
    root_of(cfg!(target_os = "macos"), |name| std::env::var_os(name))
}

fn root_of(
    macos: bool,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, StoreError> {
    // The XDG specification says that a relative path is to be ignored.
    let folder = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let home = || folder("HOME").ok_or(StoreError::NoHome);
    let data = match folder("XDG_DATA_HOME") {
        Some(data) => data,
        None if macos => home()?.join("Library/Application Support"),
        None => home()?.join(".local/share"),
    };
    Ok(data.join("pocket-llm/models"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_follows_the_platform() {
        let table = [
            (
                false,
                Some("/data"),
                Some("/home/me"),
                "/data/pocket-llm/models",
            ),
            (
                false,
                None,
                Some("/home/me"),
                "/home/me/.local/share/pocket-llm/models",
            ),
            (
                false,
                Some("data"),
                Some("/home/me"),
                "/home/me/.local/share/pocket-llm/models",
            ),
            (
                false,
                Some(""),
                Some("/home/me"),
                "/home/me/.local/share/pocket-llm/models",
            ),
            (
                true,
                None,
                Some("/Users/me"),
                "/Users/me/Library/Application Support/pocket-llm/models",
            ),
        ];
        for (macos, data, home, expected) in table {
            let variable = |name: &str| match name {
                "XDG_DATA_HOME" => data.map(OsString::from),
                _ => home.map(OsString::from),
            };
            assert_eq!(root_of(macos, variable).ok(), Some(expected.into()));
        }
        for home in [None, Some(""), Some("relative")] {
            let variable = |name: &str| home.filter(|_| name == "HOME").map(OsString::from);
            let error = root_of(false, variable)
                .expect_err("no absolute home")
                .to_string();
            assert!(error.contains("set POCKET_LLM_MODELS"), "{error}");
        }
    }
}
