//! Reads the metadata of a GGUF file (version 3), as far as tests need it without llama.cpp: strings, lists of strings
//! and unsigned 32-bit numbers. Other values are skipped.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// A value of the metadata.
#[derive(Debug)]
pub(crate) enum Value {
    Number(u32),
    Text(String),
    Texts(Vec<String>),
}

/// Type numbers of the format.
const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// All metadata that has one of the types above.
pub(crate) fn metadata(path: &Path) -> io::Result<HashMap<String, Value>> {
    let mut file = Reader(BufReader::new(File::open(path)?));
    assert_eq!(
        &file.bytes::<4>()?,
        b"GGUF",
        "{} is no GGUF file",
        path.display()
    );
    assert_eq!(
        file.u32()?,
        3,
        "{} is another version of GGUF",
        path.display()
    );
    let _tensors = file.u64()?;
    let entries = file.u64()?;
    let mut metadata = HashMap::new();
    for _ in 0..entries {
        let key = file.string()?;
        let kind = file.u32()?;
        if let Some(value) = file.value(kind)? {
            metadata.insert(key, value);
        }
    }
    Ok(metadata)
}

struct Reader(BufReader<File>);

impl Reader {
    fn value(&mut self, kind: u32) -> io::Result<Option<Value>> {
        Ok(match kind {
            U32 => Some(Value::Number(self.u32()?)),
            STRING => Some(Value::Text(self.string()?)),
            ARRAY => {
                let (kind, count) = (self.u32()?, self.u64()?);
                if kind == STRING {
                    return (0..count)
                        .map(|_| self.string())
                        .collect::<Result<_, _>>()
                        .map(|texts| Some(Value::Texts(texts)));
                }
                self.skip(size_of_kind(kind) * i64::try_from(count).expect("a count is small"))?;
                None
            }
            other => {
                self.skip(size_of_kind(other))?;
                None
            }
        })
    }

    fn string(&mut self) -> io::Result<String> {
        let length = self.u64()?;
        let mut bytes = Vec::new();
        self.0.by_ref().take(length).read_to_end(&mut bytes)?;
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, bytes: i64) -> io::Result<()> {
        self.0.seek_relative(bytes)
    }
}

fn size_of_kind(kind: u32) -> i64 {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        other => panic!("type {other} has no fixed size"),
    }
}
