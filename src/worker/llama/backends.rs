//! The CPU kernels of a build with the feature `dynamic`: libraries beside the program, one for each kind of CPU, of which
//! ggml loads the best that this CPU can run.
//!
//! Only the program's own folder counts. ggml by itself would also look in the folder of the machine that built it and in the
//! current directory, so that a broken package works for its maker and for nobody else, and so that it runs code from
//! wherever it happens to be started.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What the kernel adds to the name of a program whose file is gone.
const DELETED: &[u8] = b" (deleted)";

/// Loads the kernels for this CPU. To be called once, after llama.cpp's log was connected and before it is started.
pub(super) fn load() -> Result<(), String> {
    let folder = folder(std::env::current_exe())?;
    llama_cpp_2::llama_backend::load_backends_from_path(&folder);
    if is_empty() && std::env::var_os("CARGO_MANIFEST_DIR").is_some() {
        // Started by cargo, which leaves them in the folder of llama-cpp-sys-2's build script.
        llama_cpp_2::llama_backend::load_backends();
    }
    if is_empty() {
        return Err(format!(
            "no CPU kernels found in {}: of the libggml-cpu-*.so files that belong beside the program, there must be one for \
             this CPU",
            folder.display()
        ));
    }
    Ok(())
}

/// The kernels that were loaded, as their file is called: `armv8.6_0` for `libggml-cpu-armv8.6_0.so`.
pub(super) fn variant() -> Option<String> {
    variant_in(&std::fs::read_to_string("/proc/self/maps").ok()?)
}

fn is_empty() -> bool {
    llama_cpp_2::list_llama_ggml_backend_devices().is_empty()
}

/// The folder of the program at `exe`, with its links resolved.
fn folder(exe: io::Result<PathBuf>) -> Result<PathBuf, String> {
    let exe = exe.map_err(|error| format!("this program can't find its own file: {error}"))?;
    if let Some(path) = exe.as_os_str().as_bytes().strip_suffix(DELETED)
        && !exe.exists()
    {
        // What lies there now may be of another version, with which this program would compute nonsense.
        return Err(format!(
            "{} was replaced or removed while it ran: start the server again",
            Path::new(OsStr::from_bytes(path)).display()
        ));
    }
    match exe.parent() {
        Some(folder) if folder.to_str().is_some() => Ok(folder.to_owned()),
        _ => Err(format!(
            "{}: llama.cpp needs a path in UTF-8",
            exe.display()
        )),
    }
}

/// The one that stands in a process's list of mapped files.
fn variant_in(maps: &str) -> Option<String> {
    maps.lines().find_map(|line| {
        let (_, file) = line.rsplit_once('/')?;
        let variant = file.strip_prefix("libggml-cpu-")?;
        Some(variant.split_once(".so")?.0.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapped_kernels_have_a_name() {
        let maps = "aaaa0000-aaaa1000 r-xp 00000000 00:1f 12  /opt/pocket llm/pocket-llm\n\
                    ffff0000-ffff1000 r-xp 00000000 00:1f 13  /opt/pocket llm/libggml-base.so.0\n\
                    ffff2000-ffff3000 r--p 00000000 00:1f 14  /opt/pocket llm/libggml-cpu-armv8.6_0.so (deleted)\n\
                    ffff4000-ffff5000 rw-p 00000000 00:00 0 \n";
        assert_eq!(variant_in(maps).as_deref(), Some("armv8.6_0"));
        let others: String = maps.lines().take(2).collect();
        assert_eq!(variant_in(&others), None);
    }

    #[test]
    fn a_replaced_program_looks_no_further() {
        assert_eq!(
            folder(Ok("/no/such/pocket-llm".into())),
            Ok("/no/such".into())
        );
        let replaced = folder(Ok("/no/such/pocket-llm (deleted)".into()));
        assert_eq!(
            replaced,
            Err(
                "/no/such/pocket-llm was replaced or removed while it ran: start the server again"
                    .into()
            )
        );
        // A file of that very name is no trace of a deletion.
        let folder_of_ours = tempfile::tempdir().expect("a temporary folder");
        let odd = folder_of_ours.path().join("pocket-llm (deleted)");
        std::fs::write(&odd, "").expect("a file");
        assert_eq!(folder(Ok(odd)), Ok(folder_of_ours.path().into()));
    }
}
