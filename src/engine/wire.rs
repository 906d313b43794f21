//! The frames between front and worker: a length (u32, little endian), then that many bytes of JSON.
//!
//! Both ends are the same program, so the format needs no versions: the first frame each way carries the
//! build id, and another build is refused. A frame is at most [`MAX_FRAME`] bytes; memory grows with the bytes
//! that came, not with the length that was promised.

use super::{Event, ModelInfo, Work, WorkerConfig, WorkerStats};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Identifies the sources that this binary was built from.
pub const BUILD: &str = env!("POCKET_LLM_BUILD");

/// The longest frame: an 8 MiB body of control characters, escaped, with room to spare.
pub const MAX_FRAME: usize = 64 << 20;

/// A request's number on the wire, unique for the life of an engine handle.
pub type RequestId = u64;

/// Front to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// Always first.
    Load {
        /// The front's [`BUILD`].
        build: String,
        /// What to load.
        config: Box<WorkerConfig>,
    },
    /// Answer this.
    Submit {
        /// Its number in later frames.
        id: RequestId,
        /// What is asked.
        work: Work,
    },
    /// Nobody reads this one any more.
    Cancel {
        /// Which.
        id: RequestId,
    },
}

/// Worker to front.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// Always first.
    Hello {
        /// The worker's [`BUILD`].
        build: String,
    },
    /// Share of the model that is loaded, 0 to 1.
    Loading {
        /// Fraction done.
        progress: f32,
    },
    /// Requests are answered from here on.
    Loaded(Box<ModelInfo>),
    /// The worker ends after this.
    LoadFailed {
        /// One sentence for a person.
        reason: String,
    },
    /// What one turn of the loop brought; comes at least once a step, also without events.
    Step {
        /// In order.
        events: Vec<(RequestId, Event)>,
        /// The worker's numbers after the step.
        stats: WorkerStats,
    },
}

/// Encodes a frame with its length in front. One that would be too long is [`io::ErrorKind::FileTooLarge`], and takes no more
/// memory than the longest.
pub fn encode<T: Serialize>(frame: &T) -> io::Result<Vec<u8>> {
    let mut bounded = Bounded(vec![0; 4]);
    serde_json::to_writer(&mut bounded, frame)?;
    let Bounded(mut bytes) = bounded;
    let length = bytes.len() - 4;
    let prefix = u32::try_from(length).map_err(|_| oversized(length))?;
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    Ok(bytes)
}

/// The bytes of a frame, the length in front included.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.0.len() - 4 + bytes.len();
        if length > MAX_FRAME {
            return Err(oversized(length));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes one frame, blocking.
pub fn write<T: Serialize>(to: &mut impl Write, frame: &T) -> io::Result<()> {
    to.write_all(&encode(frame)?)
}

/// Reads one frame, blocking; `None` at a clean end between frames.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut prefix = [0; 4];
    match from.read(&mut prefix[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut prefix[1..])?,
    }
    let length = checked_length(prefix)?;
    let mut bytes = Vec::with_capacity(length.min(64 << 10));
    from.take(length as u64).read_to_end(&mut bytes)?;
    decode(&bytes, length).map(Some)
}

/// Reads one frame; `None` at a clean end between frames.
pub async fn read_async<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut prefix = [0; 4];
    match from.read(&mut prefix[..1]).await? {
        0 => return Ok(None),
        _ => from.read_exact(&mut prefix[1..]).await?,
    };
    let length = checked_length(prefix)?;
    let mut bytes = Vec::with_capacity(length.min(64 << 10));
    from.take(length as u64).read_to_end(&mut bytes).await?;
    decode(&bytes, length).map(Some)
}

fn checked_length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_FRAME {
        Err(oversized(length))
    } else {
        Ok(length)
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8], length: usize) -> io::Result<T> {
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(bytes)?)
}

fn oversized(length: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("a frame of {length} bytes or more is over the limit of {MAX_FRAME}"),
    )
}
