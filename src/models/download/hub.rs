//! What the hub says about a file before it is fetched: which commit, how long, which digest.
//!
//! hf-hub knows how the hub's URLs are built and where tokens lie. Its requests are not used: they have no time limits, and a
//! bad redirect makes them panic.

use super::client::{Answer, Client, Fault, Wanted};
use super::location::{parse_url, shown};
use super::retry::backoff;
use super::{DownloadError, Phase, Progress, Reach, Settings, Token};
use crate::models::digest::Digest;
use crate::models::reference::HubFile;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use std::env;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use ureq::http::Uri;

/// Bytes of a repository's description at most; the largest ones have some ten thousand files.
const MOST_METADATA: u64 = 8 << 20;

/// Tries where the description is not needed.
const TRIES_IF_KNOWN: u32 = 2;

/// The hub, or a mirror that speaks its protocol.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Built without a token, which hf-hub would show in `Debug`.
    api: Api,
    token: Option<Token>,
}

/// What a hub knows of a file. A mirror may know nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// The commit that the revision stands for, in 40 hexadecimal digits.
    pub commit: Option<String>,
    /// The file's length.
    pub bytes: Option<u64>,
    /// Its digest, if it is in large-file storage.
    pub sha256: Option<Digest>,
}

impl Hub {
    /// The hub that the environment names: `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`.
    pub fn from_environment() -> Result<Self, DownloadError> {
        let endpoint = setting("HF_ENDPOINT")?;
        let token = match setting("HF_TOKEN")? {
            Some(token) => Some(Token::parse(&token).ok_or(DownloadError::Setting {
                name: "HF_TOKEN",
                why: "a token is one word of ASCII characters",
            })?),
            None => token_file()?,
        };
        Self::new(
            endpoint.as_deref().unwrap_or("https://huggingface.co"),
            token,
        )
    }

    /// The hub at an endpoint such as `https://huggingface.co`.
    pub fn new(endpoint: &str, token: Option<Token>) -> Result<Self, DownloadError> {
        let endpoint = endpoint.trim().trim_end_matches('/');
        // hf-hub would panic on a URL that it can't use.
        let url = parse_url(endpoint)?;
        if url.query().is_some() || endpoint.contains('#') {
            return Err(DownloadError::BadUrl {
                url: shown(&url),
                why: "an endpoint has no query",
            });
        }
        // The cache is never used; its default would panic without a home directory.
        let api = ApiBuilder::from_cache(Cache::new(PathBuf::new()))
            .with_endpoint(endpoint.to_owned())
            .with_token(None)
            .with_progress(false)
            .build()
            .map_err(|_| DownloadError::BadUrl {
                url: shown(&url),
                why: "no client can be made for it",
            })?;
        Ok(Self { api, token })
    }

    /// The token that opens its repositories.
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Where a file is.
    pub fn url(&self, file: &HubFile) -> Result<Uri, DownloadError> {
        parse_url(&self.repo(file).url(file.file()))
    }

    /// What the hub knows of a file. If `known`, somebody else knows its length and digest, and the hub is not asked for long.
    pub fn describe(
        &self,
        file: &HubFile,
        known: bool,
        settings: &Settings,
        progress: &Progress,
    ) -> Result<Described, DownloadError> {
        let url = self.info_url(file)?;
        let attempts = if known {
            TRIES_IF_KNOWN
        } else {
            settings.attempts
        };
        let client = Client::new(settings, Reach::Any, progress)?;
        for attempt in 1.. {
            progress.check()?;
            progress.set_phase(Phase::Asking);
            progress.set_attempt(attempt);
            let asked = client.get(&url, self.token(), &Wanted::default());
            let (why, after) = match asked.and_then(|answer| self.read(answer, file)) {
                Ok(described) => return Ok(described),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Wrong { found, .. }) => (found, None),
                Err(Fault::Again { why, after }) => (why, after),
            };
            progress.check()?;
            if attempt >= attempts {
                return Err(DownloadError::GaveUp {
                    attempts: attempt,
                    last: why,
                });
            }
            let own = backoff(settings.backoff_base, settings.backoff_cap, attempt);
            let asked = after.map_or(own, |after| after.min(settings.retry_after_cap).max(own));
            progress.set_phase(Phase::Pausing);
            progress.pause(asked)?;
        }
        unreachable!("the loop ends by its attempts")
    }

    fn read(&self, answer: Answer, file: &HubFile) -> Result<Described, Fault> {
        if answer.status != 200 {
            return Err(answer.refusal(self.token.is_some()));
        }
        let url = answer.url;
        let bad = |why| Fault::Final(DownloadError::BadMetadata { url, why });
        let mut json = Vec::new();
        let body = answer.body.into_reader().take(MOST_METADATA + 1);
        if let Err(error) = { body }.read_to_end(&mut json) {
            return Err(Fault::again(error.to_string()));
        }
        if json.len() as u64 > MOST_METADATA {
            return Err(bad("it has more than 8 MiB".into()));
        }
        let info: Info = serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))?;
        info.of(file)
    }

    /// Where the hub describes a file's repository. With `blobs` it states lengths and digests.
    fn info_url(&self, file: &HubFile) -> Result<Uri, DownloadError> {
        match self.repo(file).info_request().uri_ref() {
            Some(url) => parse_url(&format!("{url}?blobs=true")),
            None => Err(DownloadError::BadUrl {
                url: file.to_string(),
                why: "no URL can be made of it",
            }),
        }
    }

    fn repo(&self, file: &HubFile) -> ApiRepo {
        let revision = file.revision().unwrap_or("main").to_owned();
        self.api.repo(Repo::with_revision(
            file.repo().to_owned(),
            RepoType::Model,
            revision,
        ))
    }
}

/// The answer of `/api/models/REPO/revision/REVISION?blobs=true`, as far as it is needed.
#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
    siblings: Option<Vec<Sibling>>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    size: Option<u64>,
    sha256: Option<Digest>,
}

impl Info {
    fn of(self, file: &HubFile) -> Result<Described, Fault> {
        let is_commit =
            |sha: &String| sha.len() == 40 && sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut described = Described {
            commit: self.sha.filter(is_commit),
            ..Described::default()
        };
        // A mirror may list no files.
        let Some(siblings) = self.siblings.filter(|files| !files.is_empty()) else {
            return Ok(described);
        };
        let sibling = siblings
            .into_iter()
            .find(|sibling| sibling.rfilename == file.file())
            .ok_or_else(|| DownloadError::NoSuchFile(file.clone()))?;
        let lfs = sibling.lfs.as_ref();
        described.bytes = lfs.and_then(|lfs| lfs.size).or(sibling.size);
        described.sha256 = lfs.and_then(|lfs| lfs.sha256);
        Ok(described)
    }
}

/// A variable that is set to something.
fn setting(name: &'static str) -> Result<Option<String>, DownloadError> {
    let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let text = value.into_string().map_err(|_| DownloadError::Setting {
        name,
        why: "it is no UTF-8",
    })?;
    Ok(Some(text))
}

/// The token that `hf auth login` left.
fn token_file() -> Result<Option<Token>, DownloadError> {
    let text = if let Some(path) = setting("HF_TOKEN_PATH")? {
        fs::read_to_string(path).ok()
    } else {
        let home = match setting("HF_HOME")? {
            Some(home) => Some(PathBuf::from(home)),
            None => env::home_dir().map(|home| home.join(".cache/huggingface")),
        };
        home.and_then(|home| Cache::new(home.join("hub")).token())
    };
    Ok(text.as_deref().and_then(Token::parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> HubFile {
        HubFile::parse("hf:owner/name/folder/a.gguf@v1/x").expect("a name")
    }

    #[test]
    fn urls_are_the_hubs() {
        let hub = Hub::new("https://mirror.example:8443/hub/", None).expect("a hub");
        let url = hub.url(&file()).expect("a URL").to_string();
        assert_eq!(
            url,
            "https://mirror.example:8443/hub/owner/name/resolve/v1%2Fx/folder/a.gguf"
        );
    }

    #[test]
    fn bad_endpoints_are_told_and_do_not_panic() {
        for endpoint in [
            "",
            "mirror.example",
            "ftp://mirror.example",
            "https://",
            "https://a b",
            "https://mirror.example/?x=1",
            "https://mirror.example#x",
            "https://user:s3cr3t@mirror.example",
            "https://mirror.example:port",
            "https://mirror.example:99999999",
            "https://[::1",
            "\u{0}",
            "http://größe.example/ü",
        ] {
            let error = Hub::new(endpoint, None).expect_err(endpoint).to_string();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn descriptions_say_what_they_say() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let digest = "ab".repeat(32);
        let read = |json: String| {
            serde_json::from_str::<Info>(&json)
                .expect("JSON")
                .of(&file())
        };
        let whole = format!(
            r#"{{"sha":"{commit}","more":1,"siblings":[{{"rfilename":"a.gguf","size":1}},
               {{"rfilename":"folder/a.gguf","size":7,"blobId":"x","lfs":{{"sha256":"{digest}","size":7,"pointerSize":1}}}}]}}"#
        );
        let expected = Described {
            commit: Some(commit.into()),
            bytes: Some(7),
            sha256: digest.parse().ok(),
        };
        assert_eq!(read(whole).expect("described"), expected);
        let bare = r#"{"sha":"main","siblings":[{"rfilename":"folder/a.gguf"}]}"#;
        assert_eq!(read(bare.into()).expect("described"), Described::default());
        assert_eq!(read("{}".into()).expect("described"), Described::default());
        let other = r#"{"siblings":[{"rfilename":"a.gguf"}]}"#;
        assert!(matches!(
            read(other.into()),
            Err(Fault::Final(DownloadError::NoSuchFile(_)))
        ));
    }
}
