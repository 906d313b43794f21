#!/usr/bin/env python3
"""Check the ARM64 package: its kernels by objdump, and the program under qemu, as CPUs of several kinds.

    check_arm64.py --package DIR --build DIR --reference X86_BINARY --model GGUF [--cpu NAME]...

The program runs from a copy of the package, while the folders of the build are away: a package that works only on the machine
that made it must fail here. On each CPU it must choose the kernels that belong to it, give the answers of the reference
(a native binary), stream, lose and regain its worker, and drain. What qemu computes is right, its speed says nothing.

Beside that: what a build on the phone itself would be compiled for, on phones of several kinds. CMake is told that it runs on one, and
compiles one file of kernels with the compiler for ARM64.
"""

import argparse
import collections
import contextlib
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

# qemu's name for a CPU and the kernels that it must get. Vectors of 128 bits, as in phones.
CPUS = {
    "cortex-a53": "armv8.0_1",
    "cortex-a76": "armv8.2_2",
    "max,sve=off": "armv8.6_0",
    "max,sve-max-vq=1": "armv8.6_2",
}
# What the kernels must be made of: dot products, matrix products, scalable vectors.
INSTRUCTIONS = {"armv8.0_1": (), "armv8.2_2": ("sdot",), "armv8.6_0": ("sdot", "smmla"),
                "armv8.6_2": ("sdot", "smmla", "ptrue")}
# Features that the kernels of real phones show (A53; A76; Snapdragon 8 Gen 1, whose SVE is hidden; Tensor G3), and what a build there
# must be compiled for.
PHONES = {
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid": ("armv8-a", "armv8.0_1"),
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs":
        ("armv8.2-a+dotprod+fp16", "armv8.2_2"),
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 asimddp sha512 i8mm":
        ("armv8.2-a+dotprod+fp16+i8mm", "armv8.6_0"),
    "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp sve sve2 svei8mm svebf16 i8mm bf16":
        ("armv8.2-a+dotprod+fp16+i8mm+sve+sve2", "armv8.6_2"),
}
MOST_BYTES = 13_000_000  # a phone fetches the package over the air
# Kernels have several hundred; a handful would be an accident.
FEW = 50
# Prompts of even and odd length, whose answers are no near ties: other kernels round differently.
QUESTIONS = ["What is the capital of France?", "What is the opposite of hot?", "Count to five.",
             "What is the capital of the USA?"]
TOKENS = 8  # further on, kernels may differ in a near tie
START_SECONDS = 180
ANSWER_SECONDS = 300
END_SECONDS = 120
# The program's surroundings must not help it.
FOREIGN = re.compile(r"CARGO|POCKET_LLM_|GGML_|LD_LIBRARY_PATH|LD_PRELOAD|QEMU_")


class Failed(Exception):
    """What is wrong, for a person."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--build", type=Path, required=True, help="cargo's folder of the ARM64 build: .../release/build")
    parser.add_argument("--reference", type=Path, required=True, help="a binary that this machine runs by itself")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--cpu", action="append", choices=CPUS, help="only this one; may be given several times")
    args = parser.parse_args()
    try:
        check_instructions(args.package)
        for features, (march, variant) in PHONES.items():
            check_native_build(features, march, variant)
        with tempfile.TemporaryDirectory(prefix="pocket-llm-arm64-") as work, away(args.build):
            copy = Path(work) / "package"
            shutil.copytree(args.package, copy)
            expected = answers_of(args.reference, args.model)
            for cpu in args.cpu or CPUS:
                check_cpu(cpu, copy, args.model, expected)
            check_verify(copy / "pocket-llm", args.model)
            check_without_kernels(copy, args.package, args.model)
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    return 0


def check(condition: object, text: str) -> None:
    if not condition:
        raise Failed(text)


# --- The files ---

def check_instructions(package: Path) -> None:
    found = {path.name.removeprefix("libggml-cpu-").removesuffix(".so"): path for path in package.glob("libggml-cpu-*.so")}
    size = sum(path.stat().st_size for path in package.iterdir())
    check(size <= MOST_BYTES, f"{package} has {size} bytes, {MOST_BYTES} are allowed")
    check(found.keys() == INSTRUCTIONS.keys(), f"{package} has kernels for {sorted(found)}, not {sorted(INSTRUCTIONS)}")
    print(f"the package: {size} bytes in {len(list(package.iterdir()))} files")
    for variant, path in sorted(found.items()):
        needed = subprocess.run(["aarch64-linux-gnu-readelf", "--dynamic", path], check=True, capture_output=True, text=True).stdout
        check("[libgomp.so.1]" in needed, f"{path.name} was built without OpenMP")
        print(f"{variant}: {path.stat().st_size} bytes, {counted(path, variant, FEW)}")


def counted(path: Path, variant: str, few: int) -> dict[str, int]:
    """How often the instructions occur that tell variants apart; each that the variant has must, and no other may."""
    listing = subprocess.run(["aarch64-linux-gnu-objdump", "--disassemble", "--no-show-raw-insn", path],
                             check=True, capture_output=True, text=True).stdout
    counts = collections.Counter(line.split("\t")[1].strip() for line in listing.splitlines() if line.count("\t") >= 1)
    row = {name: counts[name] for name in ("sdot", "smmla", "ptrue")}
    for name, count in row.items():
        if name in INSTRUCTIONS[variant]:
            check(count >= few, f"{path.name} for {variant} has only {count} of {name}")
        else:
            check(count == 0, f"{path.name} for {variant} has {count} of {name}, which its CPUs may not know")
    return row


# --- A build on the phone itself ---

def check_native_build(features: str, march: str, variant: str) -> None:
    """Configures llama.cpp as on a phone that shows these features, and compiles the file with the dot products."""
    with tempfile.TemporaryDirectory(prefix="pocket-llm-native-") as work:
        folder = Path(work)
        cpuinfo, uname = folder / "cpuinfo", folder / "bin/uname"
        cpuinfo.write_text(f"processor\t: 0\nFeatures\t: {features}\n")
        uname.parent.mkdir()
        uname.write_text(f'#!/bin/sh\ncase "$*" in -m | -p) echo aarch64 ;; *) exec {shutil.which("uname")} "$@" ;; esac\n')
        uname.chmod(0o755)
        surroundings = {**os.environ, "PATH": f"{uname.parent}:{os.environ['PATH']}"}
        run = subprocess.run(["cmake", "-S", llama_cpp(), "-B", folder / "build", "-DGGML_NATIVE=ON", "-DGGML_CCACHE=OFF",
                              *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")),
                              "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
                              f"-DCMAKE_PROJECT_ggml_INCLUDE={Path(__file__).resolve().parent.parent / 'cmake/ggml-arm64.cmake'}",
                              f"-DARM64_CPUINFO={cpuinfo}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DCMAKE_BUILD_TYPE=Release"],
                             env=surroundings, capture_output=True, text=True)
        check(run.returncode == 0, f"a build on a phone with {features} is not configured: {run.stderr}")
        commands = json.loads((folder / "build/compile_commands.json").read_text())
        (kernels,) = [each for each in commands if each["file"].endswith("ggml-cpu/arch/arm/quants.c")]
        words = shlex.split(kernels["command"])
        asked = [word for word in words if re.match("-m(arch|cpu)=", word)]
        check(asked == [f"-march={march}"], f"on a phone with {features} kernels are compiled for {asked}, not {march}")
        compiled = folder / "quants.o"
        words[words.index("-o") + 1] = str(compiled)
        subprocess.run(words, check=True, cwd=kernels["directory"])
        print(f"built on a phone: -march={march}, {counted(compiled, variant, 1)} in quants.c")


def llama_cpp() -> Path:
    """The sources in the crate that is locked."""
    metadata = json.loads(subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked", "--offline"], check=True,
                                         capture_output=True, text=True, cwd=Path(__file__).parent).stdout)
    (crate,) = [package for package in metadata["packages"] if package["name"] == "llama-cpp-sys-2"]
    return Path(crate["manifest_path"]).with_name("llama.cpp")


@contextlib.contextmanager
def away(build: Path) -> Iterator[None]:
    """Renames what llama.cpp's build left behind. What an earlier run could not bring back is brought back first."""
    def move(old: str, new: str) -> int:
        folders = [path for path in build.glob(f"llama-cpp-sys-2-*/{old}") if path.is_dir()]
        for path in folders:
            path.rename(path.with_name(new))
        return len(folders)

    move("out.away", "out")
    check(move("out", "out.away"), f"{build} holds no build of llama.cpp")
    try:
        yield
    finally:
        move("out.away", "out")


# --- The program ---

class Program:
    """A server from `with` to the end of the block."""

    def __init__(self, binary: Path, model: Path, cpu: str | None = None, cwd: Path | None = None) -> None:
        self.launcher = emulated(cpu, binary) if cpu else [str(binary)]
        self.command = [*self.launcher, "serve", str(model), "--port", "0", "--threads", "1", "--parallel", "2",
                        "--ctx-size", "1024", "--batch-size", "32", "--stall-seconds", "60", "--drain-delay", "0",
                        "--grace", str(ANSWER_SECONDS)]
        if cpu:  # qemu can't start itself again
            self.command += ["--engine-launcher", shlex.join(self.launcher)]
        self.cwd = cwd

    def __enter__(self) -> "Program":
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors,
                                        text=True, env=surroundings(), cwd=self.cwd)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()  # its worker goes with it
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def ready(self) -> None:
        line = self.process.stdout.readline()
        found = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", line)
        check(found, f"it does not listen: {line!r} {self.said()}")
        self.port = int(found[1])
        self.becomes("ready", lambda: self.ask("GET", "/readyz")[0] == 200)

    def becomes(self, what: str, condition, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            check(self.process.poll() is None, f"it ended before it was {what}: {self.said()}")
            check(time.monotonic() < deadline, f"not {what} in {seconds} s: {self.said()}")
            time.sleep(0.2)

    def open(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        connection.request(method, path, json.dumps(body) if body else None, headers or {})
        return connection.getresponse()

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        with self.open(method, path, body) as response:
            return response.status, response.read().decode()

    def answer(self, question: str) -> tuple[int, str]:
        """The tokens of the prompt, and the answer."""
        status, text = self.ask("POST", "/ai/text", request(question))
        check(status == 200, f"{question}: {status} {text}")
        answer = json.loads(text)
        return answer["metadata"]["promptTokens"], answer["response"]

    def status(self) -> dict:
        return json.loads(self.ask("GET", "/status")[1])

    def worker(self) -> int | None:
        return self.status()["worker"]["pid"]

    def ended(self) -> int:
        try:
            return self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"it did not end in {END_SECONDS} s: {self.said()}") from None


def emulated(cpu: str, binary: Path) -> list[str]:
    return ["qemu-aarch64-static", "-cpu", cpu, "-L", "/", str(binary)]


def surroundings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}


def request(question: str) -> dict:
    # A short system turn in place of the template's own: prompts are slow here.
    return {"system": "Be brief.", "text": question, "temperature": 0, "maxTokens": TOKENS, "cachePrompt": False}


def answers_of(binary: Path, model: Path) -> dict[str, tuple[int, str]]:
    with Program(binary, model) as program:
        program.ready()
        answers = {question: program.answer(question) for question in QUESTIONS}
    lengths = {tokens % 2 for tokens, _ in answers.values()}
    check(lengths == {0, 1}, f"prompts of even and odd length are needed: {answers}")  # kernels treat an odd row apart
    print(f"reference: {answers}")
    return answers


# --- What it must do on each CPU ---

def check_cpu(cpu: str, package: Path, model: Path, expected: dict[str, tuple[int, str]]) -> None:
    began = time.monotonic()
    binary = package / "pocket-llm"
    check_version(cpu, binary)
    with Program(binary, model, cpu) as program:
        program.ready()
        details = program.status()["ai"]["currentModelDetails"]
        check(details["cpuVariant"] == CPUS[cpu], f"{cpu}: computes with {details['cpuVariant']}, not {CPUS[cpu]}")
        check_mapped(program.worker(), package)
        for question, answer in expected.items():
            given = program.answer(question)
            check(given == answer, f"{cpu}: {question} {given}, the reference says {answer}")
        check_lost_worker(program, expected)
        check_stream_and_drain(program, expected)
    print(f"{cpu}: {CPUS[cpu]}, kernels of the weights {details['kernels']}, {time.monotonic() - began:.0f} s")


def check_version(cpu: str, binary: Path) -> None:
    version = subprocess.run([*emulated(cpu, binary), "--version"], check=True, capture_output=True, text=True,
                             timeout=END_SECONDS, env=surroundings())
    line = f"CPU kernels: {CPUS[cpu]}"
    check(line in version.stdout.splitlines(), f"{cpu}: --version does not say {line!r}: {version.stdout}{version.stderr}")


def check_mapped(worker: int, package: Path) -> None:
    """llama.cpp's files in the worker are the copy's, and its kernels are those of one file."""
    lines = Path(f"/proc/{worker}/maps").read_text().splitlines()
    files = {Path(line.split(maxsplit=5)[5]) for line in lines if re.search(r"/lib(ggml|llama)[^/]*$", line)}
    foreign = [path for path in files if path.parent != package]
    check(not foreign, f"files from elsewhere: {foreign}")
    kernels = [path.name for path in files if path.name.startswith("libggml-cpu-")]
    check(len(kernels) == 1, f"kernels of one file are expected: {files}")


def check_lost_worker(program: Program, expected: dict[str, tuple[int, str]]) -> None:
    first = program.worker()
    os.kill(first, signal.SIGKILL)
    program.becomes("ready with another worker", lambda: program.worker() not in (None, first)
                    and program.ask("GET", "/readyz")[0] == 200)
    question = QUESTIONS[0]
    given = program.answer(question)
    check(given == expected[question], f"after its worker was lost: {given}, not {expected[question]}")


def check_stream_and_drain(program: Program, expected: dict[str, tuple[int, str]]) -> None:
    """SIGTERM comes in the middle of a stream, which must be whole all the same."""
    question, worker = QUESTIONS[1], program.worker()
    with program.open("POST", "/ai/text", request(question), {"Accept": "text/event-stream"}) as response:
        check(response.headers["Content-Type"].startswith("text/event-stream"), f"{response.headers}")
        events = []
        for line in response:
            if line.startswith(b"data: "):
                events.append(json.loads(line.removeprefix(b"data: ")))
                if len(events) == 1:
                    program.process.send_signal(signal.SIGTERM)
    check(len(events) > 2, f"that is no stream: {events}")
    check(events[-1]["type"] == "complete" and events[-1]["fullText"] == expected[question][1], f"{events[-1]}")
    check("".join(event["token"] for event in events[:-1]) == expected[question][1], f"{events}")
    check(program.ended() == 0, f"it ended with {program.process.returncode}: {program.said()}")
    check(not Path(f"/proc/{worker}").exists(), "its worker is still there")


def check_verify(binary: Path, model: Path) -> None:
    """The package compares no vocabularies, and says so; all else of a file is verified."""
    run = subprocess.run([*emulated("cortex-a76", binary), "verify", model, "--tokenizer", "/dev/null"], capture_output=True, text=True,
                         timeout=START_SECONDS, env=surroundings())
    check("  sha256  " in run.stdout and run.returncode == 1, f"verify ended with {run.returncode}: {run.stdout}{run.stderr}")
    check(run.stderr.count("\n") == 1 and "this build can't compare with a tokenizer.json" in run.stderr, f"verify says: {run.stderr}")
    print(f"verify: {run.stderr.strip()}")


def check_without_kernels(package: Path, other: Path, model: Path) -> None:
    """A package whose kernels are missing or too new is refused, wherever others lie; its version can be asked for."""
    for kept in ((), ("libggml-cpu-armv8.6_2.so",)):
        with tempfile.TemporaryDirectory(prefix="pocket-llm-arm64-") as work:
            broken = Path(work)
            for path in package.iterdir():
                if not path.name.startswith("libggml-cpu-") or path.name in kept:
                    shutil.copy(path, broken)
            refused_without_kernels(broken, other, model)


def refused_without_kernels(broken: Path, cwd: Path, model: Path) -> None:
    cpu, binary = "cortex-a53", broken / "pocket-llm"
    sentence = f"no CPU kernels found in {broken}"
    with Program(binary, model, cpu, cwd) as program:
        check(program.ended() == 1, f"without kernels it ended with {program.process.returncode}")
        errors = [line for line in program.said().splitlines() if line.startswith("pocket-llm: ")]
        check(len(errors) == 1 and sentence in errors[0], f"without kernels it said: {program.said()}")
    version = subprocess.run([*emulated(cpu, binary), "--version"], check=True, capture_output=True, text=True,
                             timeout=END_SECONDS, env=surroundings(), cwd=cwd)
    check(sentence in version.stdout, f"--version without kernels: {version.stdout}")
    print(f"without kernels: {errors[0]}")


if __name__ == "__main__":
    sys.exit(main())
