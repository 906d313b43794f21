//! Gives the binary an id of the sources that it was built from (`POCKET_LLM_BUILD`): front and worker are the same
//! program, and refuse each other when they are not.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let mut files = vec![PathBuf::from("Cargo.lock"), PathBuf::from("Cargo.toml")];
    collect(Path::new("src"), &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in &files {
        file.hash(&mut hasher);
        fs::read(file)?.hash(&mut hasher);
    }
    for variable in ["TARGET", "PROFILE", "CARGO_ENCODED_RUSTFLAGS"] {
        env::var(variable).unwrap_or_default().hash(&mut hasher);
    }
    println!("cargo:rustc-env=POCKET_LLM_BUILD={:016x}", hasher.finish());
    println!(
        "cargo:rustc-env=POCKET_LLM_LLAMA={}",
        llama_version(&fs::read_to_string("Cargo.lock")?)
    );
    for path in ["src", "models", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The locked version of the crate that carries llama.cpp's sources.
fn llama_version(lock: &str) -> String {
    let name = "llama-cpp-sys-2";
    let mut lines = lock
        .lines()
        .skip_while(|line| *line != format!("name = \"{name}\""));
    let version = lines.nth(1).and_then(|line| line.split('"').nth(1));
    format!("{name} {}", version.unwrap_or("of unknown version"))
}
