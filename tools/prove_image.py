#!/usr/bin/env python3
"""Prove Dockerfile.arm64 without Docker: run the steps of its first stage in a bare Debian, and its second stage under qemu.

    prove_image.py --model GGUF [--image FOLDER]

The first stage's instructions are read from the Dockerfile and run by chroot in a root that debootstrap makes, with rustup's toolchain
where the base image has it. What the second stage copies is put together in a folder, which then is a container's root as
Kubernetes would have it: read-only, as the image's user without capabilities, as process 1, with a store that an init container with CHOWN
alone has prepared. --image takes such a folder from an earlier run (with --keep) instead of building anew.

Needs root, debootstrap, unshare and qemu-aarch64-static. Not proved: BuildKit's own parts (layers, cache, platforms).
"""

import argparse
import contextlib
import ctypes
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 120_000_000
# What Dockerfile.arm64 expects of `rust:VERSION-bookworm`, from where Debian and rustup have it.
PACKAGES = "ca-certificates,gcc,libc6-dev"
BASE = {"PATH": "/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
        "RUSTUP_HOME": "/usr/local/rustup", "CARGO_HOME": "/usr/local/cargo", "DEBIAN_FRONTEND": "noninteractive",
        # What this machine trusts, for its own mirrors and proxies; not a part of the image.
        "SSL_CERT_FILE": "/certificates", "CARGO_HTTP_CAINFO": "/certificates"}
EMULATOR = "/qemu"
CPU = "max,sve=off"
PORT = 18005
SECONDS = 300
# Numbers of the kernel: linux/prctl.h, linux/capability.h.
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, CHOWN = 24, 38, 0


class Failed(Exception):
    """What is wrong, for a person."""


def say(sentence: str) -> None:
    print(f"prove_image: {sentence}", flush=True)


def check(condition: object, text: str) -> None:
    if not condition:
        raise Failed(text)


# --- The Dockerfile ---

def stages(text: str) -> list[list[tuple[str, str]]]:
    """The instructions of each stage, with their continued lines joined and comments taken out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found: list[list[tuple[str, str]]] = []
    for line in filter(str.strip, joined.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


# --- The first stage ---

def bare_debian(root: Path, rust: str) -> None:
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root, quiet=True)
    cargo = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "certificates")
    (root / "usr/local/cargo/bin").mkdir(parents=True)
    for program in ("rustup", "cargo", "rustc"):
        shutil.copy(cargo / "bin" / program, root / "usr/local/cargo/bin")
    with mounted(root):
        for arguments in (["toolchain", "install", rust, "--profile", "minimal"], ["default", rust]):
            run(*entered(root, Path("/")), "rustup", *arguments, quiet=True)
    # Sources of crates that are here already are not fetched again.
    run("cp", "-a", "--reflink=auto", cargo / "registry", root / "usr/local/cargo")


def entered(root: Path, folder: Path) -> list[object]:
    return ["chroot", root, "/usr/bin/env", "-i", "--chdir", folder, *(f"{name}={value}" for name, value in BASE.items())]


@contextlib.contextmanager
def mounted(root: Path) -> Iterator[None]:
    """/proc and /dev, without which compilers and apt don't work."""
    for name, arguments in (("proc", ["-t", "proc", "proc"]), ("dev", ["--bind", "/dev"])):
        run("mount", *arguments, root / name)
    try:
        yield
    finally:
        for name in ("dev", "proc"):
            run("umount", root / name)


def first_stage(instructions: list[tuple[str, str]], root: Path) -> None:
    shell, folder = ["/bin/sh", "-c"], Path("/")
    for word, rest in instructions:
        if word == "SHELL":
            shell = json.loads(rest)
        elif word == "WORKDIR":
            folder = Path(rest)
            inside(root, folder).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            copy(rest.split(), inside(root, folder))
        elif word == "RUN":
            began = time.monotonic()
            with mounted(root):
                run("nice", "-n", "10", *entered(root, folder), *shell, rest, quiet=True)
            say(f"ran in {time.monotonic() - began:.0f} s: {' '.join(rest.split())[:90]}…")
        else:
            check(word == "FROM", f"{word} is not known here")


def copy(words: list[str], into: Path) -> None:
    """From the build's context: what is in git, and let in by .dockerignore."""
    *sources, target = words
    admitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in sources:
        check([path for path in admitted if Path(source).is_relative_to(path)], f"COPY {source}: .dockerignore keeps it out")
        tracked = subprocess.run(["git", "ls-files", "-z", source], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        names = [name for name in tracked.split("\0") if name]
        check(names, f"COPY {source}: git has no such file")
        for name in names:
            # A folder's content goes into the folder that the target names.
            place = into / target / (Path(name).relative_to(source) if (ROOT / source).is_dir() else Path(name).name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place)


def inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


# --- The second stage ---

def second_stage(instructions: list[tuple[str, str]], build: Path, image: Path) -> None:
    image.mkdir()
    for word, rest in instructions:
        if word == "COPY":
            *flags, source, target = rest.split()
            run("cp", "-a", f"{inside(build, Path(source))}/.", inside(image, Path(target)))
            for flag in flags:
                if flag.startswith("--chown="):
                    for path in inside(build, Path(source)).rglob("*"):
                        owner = map(int, flag.removeprefix("--chown=").split(":"))
                        os.chown(inside(image, Path(target)) / path.relative_to(inside(build, Path(source))), *owner)


def check_files(image: Path) -> None:
    files = [path for path in image.rglob("*") if path.is_file() and not path.is_symlink() and path != inside(image, Path(EMULATOR))]
    size = sum(path.stat().st_size for path in files)
    check(size < MOST_BYTES, f"the image has {size} bytes, {MOST_BYTES} are allowed")
    check(not [path for path in files if path.name in ("sh", "bash", "busybox")], "there is a shell in the image")
    check(not [path for path in files if path.stat().st_mode & 0o6000], "a file of the image gives its user rights")
    say(f"the image has {size} bytes in {len(files)} files, and no shell")


def settings(instructions: list[tuple[str, str]]) -> tuple[dict[str, str], str, list[str]]:
    """Environment, user and command of the image."""
    environment, user, entry = {}, "", []
    for word, rest in instructions:
        if word == "ENV":
            environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif word == "USER":
            user = rest
        elif word == "ENTRYPOINT":
            entry = json.loads(rest)
    return environment, user, entry


def check_container(image: Path, instructions: list[tuple[str, str]], model: Path, work: Path) -> None:
    environment, user, entry = settings(instructions)
    inside(image, Path(EMULATOR)).touch()
    for name in ("proc", "dev"):
        inside(image, Path("/") / name).mkdir(exist_ok=True)
    store = work / "store"
    store.mkdir()
    where = environment["POCKET_LLM_MODELS"]
    emulated = [EMULATOR, "-cpu", CPU, *entry]
    container = {"image": str(image), "store": str(store), "where": where, "user": user,
                 "environment": {**environment, "POD_NAME": "pocket-llm-proof", "NODE_NAME": "phone-b"}}
    prepare = {**container, "user": "0:0", "command": [*emulated, "prepare-store", "--owner", user, where]}
    check(subprocess.run(started(prepare)).returncode == 0, "prepare-store with CHOWN alone failed")
    about = store.stat()
    check(f"{about.st_uid}:{about.st_gid}" == user, f"prepare-store left the store to {about.st_uid}:{about.st_gid}, not {user}")
    shutil.copy(model, store / "model.gguf")
    (store / "model.gguf").chmod(0o644)
    serve = {**container, "command": [*emulated, "serve", f"{where}/model.gguf", "--port", str(PORT), "--threads", "1", "--parallel", "1",
                                      "--ctx-size", "512", "--batch-size", "16", "--stall-seconds", "60", "--drain-delay", "0",
                                      "--engine-launcher", " ".join(emulated)]}
    with subprocess.Popen(started(serve)) as server:
        try:
            check_server(server, int(user.split(":")[0]))
        finally:
            server.kill()  # what it started goes with it


def check_server(server: subprocess.Popen, user: int) -> None:
    def ask(method: str, path: str, body: object = None) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=SECONDS)
        connection.request(method, path, json.dumps(body) if body else None)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read().decode()

    def ready() -> bool:
        check(server.poll() is None, f"the container ended with {server.returncode}")
        with contextlib.suppress(OSError):
            return ask("GET", "/readyz")[0] == 200
        return False
    deadline = time.monotonic() + SECONDS
    while not ready():
        check(time.monotonic() < deadline, f"not ready in {SECONDS} s")
        time.sleep(0.2)
    question = {"system": "Be brief.", "text": "What is the capital of France?", "temperature": 0, "maxTokens": 8}
    status, headers, text = ask("POST", "/ai/text", question)
    check(status == 200 and "Paris" in json.loads(text)["response"], f"{status} {text}")
    names = {name.lower(): value for name, value in headers.items()}
    check(names.get("x-served-by") == "pocket-llm-proof", f"the answer's headers are {headers}")
    (first,) = children(server.pid)
    limits = dict(line.split(":\t", 1) for line in Path(f"/proc/{first}/status").read_text().splitlines())
    check(limits["NSpid"].split()[-1] == "1", f"it is process {limits['NSpid']}")
    check(limits["Uid"].split() == [str(user)] * 4 and int(limits["CapEff"], 16) == 0, f"it runs as {limits['Uid']} with {limits['CapEff']}")
    say(f"as process 1 and user {user}, without capabilities, on a read-only root, it answers {json.loads(text)['response']!r}")
    os.kill(first, signal.SIGTERM)
    check(server.wait(timeout=60) == 0, f"after SIGTERM the container ended with {server.returncode}")
    say("SIGTERM: it drains and ends with status 0")


def children(pid: int) -> list[int]:
    return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]


# --- A container, as far as the kernel makes one ---

def started(container: dict) -> list[str]:
    """In mounts and processes of its own; the network stays the machine's, as on a phone."""
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", sys.executable, __file__, "--enter", json.dumps(container)]


def enter(container: dict) -> None:
    """Becomes the container's command."""
    image, (user, group) = container["image"], map(int, container["user"].split(":"))
    run("mount", "--bind", image, image)
    run("mount", "--bind", container["store"], image + container["where"])
    run("mount", "--bind", shutil.which("qemu-aarch64-static"), image + EMULATOR)
    run("mount", "-t", "proc", "proc", image + "/proc")
    run("mount", "--bind", "/dev", image + "/dev")
    run("mount", "-o", "remount,bind,ro", image)
    os.chroot(image)
    os.chdir("/")
    control = ctypes.CDLL(None, use_errno=True).prctl
    for capability in range(64):
        if capability != CHOWN or user:
            control(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails beyond the last one
    os.setgroups([3003])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    check(control(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "the kernel knows no no_new_privs")
    os.execve(container["command"][0], container["command"], container["environment"])


# --- All of it ---

def run(*command: object, quiet: bool = False) -> None:
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=quiet, text=True)
    if done.returncode:
        raise Failed(f"{shlex.join(map(str, command))[:300]}: status {done.returncode}\n{(done.stderr or '')[-3000:]}")


def main() -> int:
    if sys.argv[1:2] == ["--enter"]:
        enter(json.loads(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--image", type=Path, help="the image's root from an earlier run")
    parser.add_argument("--keep", type=Path, help="where to leave the image's root")
    args = parser.parse_args()
    missing = [program for program in ("debootstrap", "unshare", "qemu-aarch64-static") if not shutil.which(program)]
    if missing or os.geteuid():
        print(f"prove_image: this needs root and debootstrap, unshare, qemu-aarch64-static; missing: {missing}", file=sys.stderr)
        return 1
    build, final = stages((ROOT / "Dockerfile.arm64").read_text())
    work = Path(tempfile.mkdtemp(prefix="pocket-llm-image-"))
    image = args.image or args.keep or work / "image"
    try:
        if not args.image:
            (rust,) = re.findall(r"rust:([\d.]+)-bookworm", build[0][1])
            bare_debian(work / "build", rust)
            first_stage(build, work / "build")
            second_stage(final, work / "build", image)
        check_files(image)
        check_container(image, final, args.model, work)
    except (Failed, subprocess.TimeoutExpired) as failure:
        print(f"prove_image: FAILED: {failure}", file=sys.stderr)
        return 1
    finally:
        # Only what is ours: nothing may be mounted in it any more.
        if not [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(work) in line]:
            shutil.rmtree(work, ignore_errors=True)
    say("everything holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
