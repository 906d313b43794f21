#!/usr/bin/env python3
"""Measures the server against llama.cpp's own programs, in one run: `make bench`. Prints a Markdown table.

    compare.py --server target/release/pocket-llm --peer DIR --model FILE [--second FILE] [--only decode,kill] [--repetitions 5]

decode   one stream: tokens/s against llama-bench at the same depth, and against llama-server
streams  eight streams at once: all tokens/s against llama-server, same prompts; llama-batched-bench beside it
overhead what our worker spends per token outside of llama.cpp
idle     processor time and memory of a server that has nothing to do
start    from exec to the first token of a cached model
loading  a second model is loaded while the first one streams: how much longer does a token take at most
kill     the worker is killed amid eight streams: when does every client know, and does the next request work
prefix   ten requests at once whose prompts begin with the same 500 tokens: prompt tokens decoded, time to the first token
arrival  a prompt of 1,500 tokens arrives amid seven streams: their slowest inter-token gap, and its time to the first token
drafts   texts that are copied, repeated or new: tokens/s with and without guessing ahead, and llama-server's ways to guess
growth   memory after 100 and after 1,000 requests
first    one stream: time to the first token after a short and a long prompt, against llama-server
extras   what penalties, log-probabilities and forms cost, against the same request without them
beside   guessing ahead with eight streams at once, against none
resident all memory after eight streams, against llama-server without its cache
partner  a second model drafts (--draft FILE): tokens/s with and without it, and llama-server's with the same pair

Same model, threads and processor flags on both sides. The two sides have short turns, and the one that waits is stopped
(SIGSTOP); what is printed of them is the median of the ratios of these pairs. Everything stays on 127.0.0.1. A core that
something else uses makes llama.cpp's threads wait for each other and costs a factor, not a share: a repetition waits up to 20 s for a quiet machine, the header says how often in vain, and the table how
far the repetitions lie apart.
"""

import argparse
import asyncio
import json
import mmap
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

import features
import load
import reuse
import servers
from load import Stream, now, one_stream, require
from report import Row, limit_row, paired_row, spread, table
from servers import Server

MIB = 1 << 20
N_STREAMS = 8
MAX_TOKENS = 128
TURN_TOKENS = 64
TURNS = 6  # of each repetition with processes of its own
LOADING_TOKENS = 700
CONTEXT_PER_STREAM = 1024
IDLE_SECONDS = 20
RESTART_SECONDS = 30
BALLAST_MODELS = 3
QUIET_CORES = 0.25  # as much of the machine may be busy with other things when a repetition begins
QUIET_WAIT_SECONDS = 20
PLAIN = ["--speculate", "off"]  # where step is compared with step
TOPICS = ["a lighthouse", "a market in the rain", "the first train of the day", "an old bridge", "a lost letter",
          "the night shift", "a garden on a roof", "a map with a mistake"]


@dataclass
class Bench:
    """What to measure, with what, and where to put the logs."""
    server: Path
    peer: Path
    model: Path
    threads: int
    repetitions: int
    serve_flags: list[str]
    folder: Path
    second: Path
    draft: Path | None = None
    ballast: mmap.mmap | None = None
    n_prompts: int = 0
    n_repetitions_run: int = 0
    n_began_busy: int = 0

    def quiet_repetitions(self) -> Iterator[int]:
        """Numbers the repetitions. Each waits a while for a quiet machine, and it is counted when that was in vain."""
        for repetition in range(self.repetitions):
            deadline = time.monotonic() + QUIET_WAIT_SECONDS
            while busy := servers.busy_cores(0.3) > QUIET_CORES:
                if time.monotonic() > deadline:
                    break
            self.n_repetitions_run += 1
            self.n_began_busy += busy
            yield repetition

    @contextmanager
    def ours(self, *flags: str, n_streams: int = N_STREAMS) -> Iterator[Server]:
        command = [str(self.server), "serve", str(self.model), "--host", "127.0.0.1", "--port", "0",
                   "--parallel", str(n_streams), "--threads", str(self.threads), *self.serve_flags, *flags]
        with Server(command, self.folder / "ours.log") as server:
            yield server

    @contextmanager
    def ours_ready(self, *flags: str, n_streams: int = N_STREAMS) -> Iterator[Server]:
        with self.ours(*flags, n_streams=n_streams) as server:
            server.port()
            server.wait_until_ready("/readyz")
            one_stream(server, load.phone_call(self.prompt(), 8))
            yield server

    @contextmanager
    def llama_server(self, *flags: str, n_streams: int = N_STREAMS, context: int = CONTEXT_PER_STREAM) -> Iterator[Server]:
        port = servers.free_port()
        command = [str(self.peer / "llama-server"), "--host", "127.0.0.1", "--port", str(port), "-m", str(self.model),
                   "-np", str(n_streams), "-c", str(n_streams * context), "-t", str(self.threads), "--no-webui", *flags]
        with Server(command, self.folder / "llama-server.log", port) as server:
            yield server

    @contextmanager
    def llama_server_ready(self, *flags: str, n_streams: int = N_STREAMS,
                           context: int = CONTEXT_PER_STREAM) -> Iterator[Server]:
        with self.llama_server(*flags, n_streams=n_streams, context=context) as server:
            server.wait_until_ready("/health")
            one_stream(server, load.openai_call(self.prompt(), 8))
            yield server

    def llama_tool(self, program: str, *arguments: str) -> str:
        done = subprocess.run([str(self.peer / program), "-m", str(self.model), "-t", str(self.threads), *arguments],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=600)
        return done.stdout

    def prompt(self) -> str:
        """About 100 tokens. The number comes first, so that no prompt cache shortens the work; numbers come in no order, so that none has more
        in common with the one before than with others."""
        self.n_prompts += 1
        topic = TOPICS[self.n_prompts % len(TOPICS)]
        return (f"{self.n_prompts * 7919 % 10000:04}. Write a long and quiet story about {topic}. Say who is there and what the weather "
                "is like, what can be heard and what has just happened. Let two people talk about it who do not agree, "
                "and let a third one come in late. Use plain words and short sentences, keep to the past tense, and do "
                "not explain anything that the reader can see. End with a small thing that nobody had noticed before.")


def main() -> int:
    arguments = parse_arguments()
    # Whatever hangs, the servers are ended: the alarm raises inside their `with`.
    signal.signal(signal.SIGALRM, out_of_time)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.alarm(arguments.time_limit)
    failed = False
    with tempfile.TemporaryDirectory(prefix="pocket-llm-bench-") as folder:
        bench = Bench(arguments.server, arguments.peer, arguments.model, arguments.threads, arguments.repetitions,
                      arguments.serve_flags.split(), Path(folder), arguments.second or arguments.model, arguments.draft,
                      ballast(arguments.model, arguments.ballast))
        rows = []
        for name in arguments.only:
            print(f"measuring: {name}", file=sys.stderr)
            try:
                rows += PARTS[name](bench)
            except (RuntimeError, OSError, subprocess.SubprocessError, KeyError, ValueError) as error:
                failed = True
                rows.append(Row(name, f"failed: {type(error).__name__}: {error}".replace("\n", " ")))
        report = header(bench) + table(rows)
    print(report)
    if arguments.out:
        arguments.out.write_text(report + "\n")
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, default=Path("target/release/pocket-llm"))
    parser.add_argument("--peer", type=Path, required=True, metavar="DIR", help="with llama-server and llama-bench")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--second", type=Path, help="the model that is loaded beside --model, else the same file")
    parser.add_argument("--draft", type=Path, help="a smaller model with the same vocabulary, for the part `partner`")
    parser.add_argument("--only", type=parts, default=list(PARTS), metavar="PART,PART")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--serve-flags", default="", help="more flags for our `serve`, in one string")
    parser.add_argument("--time-limit", type=int, default=1800, metavar="SECONDS")
    parser.add_argument("--ballast", type=int, metavar="MIB", help="memory held meanwhile, so that all sides get whole pieces; "
                        f"default: {BALLAST_MODELS} times the model's file, or a quarter of what is free")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report there too")
    arguments = parser.parse_args()
    if not arguments.model.is_file():
        parser.error(f"--model {arguments.model}: no such file")
    return arguments


def ballast(model: Path, mib: int | None) -> mmap.mmap | None:
    """Memory to hold while servers are measured. Free memory that lies in pieces goes first to who starts first, and is slower: whoever it is lost
    10 to 15 % with a model of 1.1 GB that lies in pages of 4 KiB. With the pieces gone all sides get whole memory."""
    available = next(1024 * int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()
                     if line.startswith("MemAvailable:"))
    size = min(BALLAST_MODELS * model.stat().st_size if mib is None else mib * MIB, available // 4)
    if size <= 0:
        return None
    held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # kernels without huge pages
        held.madvise(mmap.MADV_NOHUGEPAGE)  # else it would take whole memory and leave the pieces
    for at in range(0, size, mmap.PAGESIZE):
        held[at] = 1
    return held


def parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(PARTS)}")
    return names


def out_of_time(*_: object) -> None:
    raise RuntimeError("--time-limit is over")


# --------------------------------------------------------------------------
# The parts
# --------------------------------------------------------------------------


def decode(bench: Bench) -> list[Row]:
    """Short turns, and fresh processes for each repetition: where their pages lie is worth some per cent."""
    ours, by_client, engine, peer = [], [], [], []
    for _ in bench.quiet_repetitions():
        with bench.ours_ready(*PLAIN) as server, bench.llama_server_ready() as llama_server:
            sides = [(server, load.phone_call), (llama_server, load.openai_call)]
            for number in in_turns(server, llama_server):
                said, peer_said = load.answers(sides, number % 2 == 1, bench.prompt, TURN_TOKENS)
                ours.append(said.server_rate or said.rate)
                by_client.append(said.rate)
                peer.append(peer_said.rate)
                depth = said.prompt_tokens
                engine.append(llama_bench(bench, depth))
    what = f"decode, one stream, {TURN_TOKENS} tokens at depth {depth}, tokens/s"
    return [paired_row(what, ours, engine, 0.97, "llama-bench"),
            paired_row("– by the client's clock", by_client, peer, 1.0, "llama-server")]


def in_turns(*sides: Server) -> Iterator[int]:
    """Stops the servers and numbers the turns. Who has one says so with `Server.turn`."""
    for side in sides:
        side.pause()
    yield from range(TURNS)


def llama_bench(bench: Bench, depth: int) -> float:
    output = bench.llama_tool("llama-bench", "-p", "0", "-n", str(TURN_TOKENS), "-d", str(depth), "-r", "1", "-o", "json")
    return json.loads(output)[0]["avg_ts"]


def streams(bench: Bench) -> list[Row]:
    ours, peer, ceiling = [], [], []
    with bench.ours_ready(*PLAIN) as server, bench.llama_server_ready() as llama_server:
        sides = [(server, load.phone_call, ours), (llama_server, load.openai_call, peer)]
        for side, _, _ in sides:
            side.pause()
        for repetition in bench.quiet_repetitions():
            prompts = [bench.prompt() for _ in range(N_STREAMS)]
            for side, call, rates in sides if repetition % 2 == 0 else reversed(sides):
                with side.turn():
                    rate, depth = eight_streams(side, [call(prompt, MAX_TOKENS) for prompt in prompts])
                rates.append(rate)
            ceiling.append(batched_bench(bench, depth))
    what = f"{N_STREAMS} streams at once, {MAX_TOKENS} tokens each after {depth}, all tokens/s"
    return [paired_row(what, ours, peer, 1.0, "llama-server"),
            paired_row("– the same against the bare engine", ours, ceiling, 0.96, "llama-batched-bench")]


def eight_streams(server: Server, calls: list[load.Call]) -> tuple[float, int]:
    """All tokens by the time from the first request to the last answer's end, and the depth where they began."""
    done = asyncio.run(load.send_together(server.port(), calls))
    for stream in done:
        require(stream)
    seconds = max(s.ended for s in done) - min(s.started for s in done)
    return sum(s.tokens for s in done) / seconds, int(statistics.median(s.prompt_tokens for s in done))


def batched_bench(bench: Bench, depth: int) -> float:
    """The engine alone: the same prefill and generation with no server around them."""
    output = bench.llama_tool("llama-batched-bench", "-npp", str(depth), "-ntg", str(MAX_TOKENS), "-npl", str(N_STREAMS),
                              "-c", str(N_STREAMS * CONTEXT_PER_STREAM), "--output-format", "jsonl")
    result = next(json.loads(line) for line in output.splitlines() if line.startswith("{"))
    return N_STREAMS * MAX_TOKENS / (result["t_pp"] + result["t_tg"])


def overhead(bench: Bench) -> list[Row]:
    rows = []
    with bench.ours_ready() as server:
        for n_streams in (1, N_STREAMS):
            figures = []
            for _ in bench.quiet_repetitions():
                before = worker_counters(server)
                eight_streams(server, [load.phone_call(bench.prompt(), MAX_TOKENS) for _ in range(n_streams)])
                seconds, tokens = (after - b for after, b in zip(worker_counters(server), before))
                figures.append(1e6 * seconds / tokens)
            rows.append(limit_row(f"overhead per token, {n_streams} at once, µs", figures, 100))
    return rows


def worker_counters(server: Server) -> tuple[float, float]:
    return (server.metric("pocket_llm_worker_overhead_seconds_total"),
            server.metric("pocket_llm_generated_tokens_total"))


def idle(bench: Bench) -> list[Row]:
    with bench.ours_ready() as server:
        # Memory is looked at after work, when all that is allocated late has been.
        eight_streams(server, [load.phone_call(bench.prompt(), 32) for _ in range(N_STREAMS)])
        time.sleep(2)
        family = server.family()
        before = servers.cpu_seconds(family)
        time.sleep(IDLE_SECONDS)
        used = servers.cpu_seconds(family) - before
        held = servers.memory(family, bench.model)
        buffers = {name: size for name, size in server.buffers().items() if "mapped" not in name.lower()}
    if not buffers:
        raise RuntimeError("/status names no buffers: memory cannot be told apart from the engine's")
    of_the_engine = sum(buffers.values())
    note = (f"anonymous {held.anonymous / MIB:.0f} of which llama.cpp's buffers {of_the_engine / MIB:.0f}, "
            f"code and files {held.files / MIB:.0f}")
    return [limit_row(f"idle, processor time of all processes in {IDLE_SECONDS} s, ms", [1000 * used], None),
            limit_row(f"idle, memory beyond weights, KV and llama.cpp's buffers, MiB ({note})",
                      [(held.total - of_the_engine) / MIB], 50)]


def start(bench: Bench) -> list[Row]:
    bench.model.read_bytes()  # into the page cache
    ours, peer, asked = [], [], []
    with bench.ours_ready() as server, bench.llama_server_ready() as llama_server:
        # One that both have something visible to say to: a server is ready when that is seen.
        sides = [(server, load.phone_call), (llama_server, load.openai_call)]
        load.answers(sides, False, lambda: asked.append(bench.prompt()) or asked[-1], 4)
    for _ in bench.quiet_repetitions():
        with bench.ours() as server:
            ours.append(first_token(server, load.phone_call(asked[-1], 4)) - server.exec_time)
        with bench.llama_server() as server:
            peer.append(first_token(server, load.openai_call(asked[-1], 4)) - server.exec_time)
    row = limit_row("from exec to the first token, cached model, s", ours, 1.0)
    row.peer = f"{spread(peer)} (llama-server)"
    return [row]


def first_token(server: Server, call: load.Call) -> float:
    """Asks until a token comes: refused connections and 503 mean not yet."""
    deadline = time.monotonic() + servers.READY_SECONDS
    while True:
        server.check_alive(deadline)
        stream = asyncio.run(load.send(server.port(), call))
        if stream.token_times:
            return stream.token_times[0]
        if stream.failure is None and stream.status not in (0, 503):
            require(stream)
        time.sleep(0.002)


def loading(bench: Bench) -> list[Row]:
    growth, load_seconds = [], []
    store = bench.folder / "models"
    store.mkdir(exist_ok=True)
    (store / "second.gguf").symlink_to(bench.second.resolve())
    bench.second.read_bytes()  # into the page cache
    bench.serve_flags += ["--models", str(store), "--ctx-size", str(N_STREAMS * CONTEXT_PER_STREAM)]
    for _ in bench.quiet_repetitions():
        with bench.ours_ready() as server:
            alone = gaps(one_stream(server, load.phone_call(bench.prompt(), LOADING_TOKENS)))
            stream, seconds = asyncio.run(load_amid_stream(server, bench.prompt()))
            growth.append((max(gaps(require(stream))) - max(alone)) / statistics.median(alone))
            load_seconds.append(seconds)
    size = f"{bench.second.stat().st_size / MIB:.0f} MiB"
    return [limit_row("a second model is loaded: growth of a stream's slowest inter-token gap, in its median gaps", growth, 3),
            limit_row(f"– seconds that the load took ({size})", load_seconds, None)]


def gaps(stream: Stream) -> list[float]:
    return [after - before for before, after in zip(stream.token_times, stream.token_times[1:])]


async def load_amid_stream(server: Server, prompt: str) -> tuple[Stream, float]:
    """A stream, and amid it a client that asks for the second model and leaves: that model is loaded, and computes nothing."""
    stream = Stream(started=now())
    watching = asyncio.create_task(
        load.watch(server.port(), load.phone_call(prompt, LOADING_TOKENS), stream, timeout=120))
    while sum(data.count(b'"token"') for _, data in stream.arrivals) < LOADING_TOKENS // 8:
        if watching.done():
            raise RuntimeError("the stream ended before a model could be loaded beside it")
        await asyncio.sleep(0.005)
    began = now()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port())
    writer.write(load.phone_call("hi", 1, "second").bytes(server.port()))
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    seconds = None
    while seconds is None and not watching.done():
        status = json.loads(await asyncio.to_thread(server.get, "/status"))
        if any(model["name"] == "second" and model["state"] == "ready" for model in status["models"]):
            seconds = now() - began
        await asyncio.sleep(0.1)
    await watching
    if seconds is None:
        raise RuntimeError("the stream ended before the second model was loaded")
    return stream, seconds


def kill(bench: Bench) -> list[Row]:
    known, again, n_errors = [], [], 0
    for _ in bench.quiet_repetitions():
        with bench.ours_ready() as server:
            killed, done = asyncio.run(kill_amid_streams(server, [bench.prompt() for _ in range(N_STREAMS)]))
            known.append(max(s.ended for s in done) - killed)
            n_errors += sum(len(s.errors) == 1 and not s.complete and not s.failure for s in done)
            again.append(first_token_after(server, load.phone_call(bench.prompt(), 4)) - killed)
    expected = bench.repetitions * N_STREAMS
    return [limit_row(f"worker killed amid {N_STREAMS} streams, until the last client knows, s", known, 1.0),
            Row("– clients that got exactly one error event", f"{n_errors} of {expected}", bar="all",
                met=n_errors == expected),
            limit_row("– until the next request has its first token, s", again, None)]


async def kill_amid_streams(server: Server, prompts: list[str]) -> tuple[float, list[Stream]]:
    calls = [load.phone_call(prompt, CONTEXT_PER_STREAM // 2) for prompt in prompts]
    running = [Stream(started=now()) for _ in calls]
    watching = asyncio.gather(*(load.watch(server.port(), c, s, timeout=60) for c, s in zip(calls, running)))
    deadline = now() + 60
    while not all(any(b'"token"' in data for _, data in s.arrivals) for s in running):
        if now() > deadline or watching.done():
            raise RuntimeError("the eight streams did not all begin")
        await asyncio.sleep(0.005)
    killed = now()
    os.kill(server.worker(), signal.SIGKILL)
    return killed, list(await watching)


def first_token_after(server: Server, call: load.Call) -> float:
    """The first success within the time that a restart may take; errors before it are part of the restart."""
    deadline = time.monotonic() + RESTART_SECONDS
    while time.monotonic() < deadline:
        stream = asyncio.run(load.send(server.port(), call))
        if stream.problem() is None and stream.token_times:
            return stream.token_times[0]
        time.sleep(0.01)
    raise RuntimeError(f"no request succeeded within {RESTART_SECONDS} s of the kill: {stream.problem()}")


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "decode": decode, "streams": streams, "overhead": overhead, "idle": idle, "start": start, "loading": loading, "kill": kill,
    "prefix": reuse.prefix, "arrival": reuse.arrival, "drafts": reuse.drafts, "growth": reuse.growth,
    "first": features.first, "extras": features.extras, "beside": features.beside, "resident": features.resident,
    "partner": features.partner}


# --------------------------------------------------------------------------
# The report
# --------------------------------------------------------------------------


def header(bench: Bench) -> str:
    return (f"{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores ({platform.machine()}), "
            f"{bench.threads} threads; {bench.model.name} ({bench.model.stat().st_size:,} bytes); medians of "
            f"{bench.repetitions} (smallest to largest), {bench.n_began_busy} of {bench.n_repetitions_run} repetitions "
            f"began with more than {QUIET_CORES} cores busy with other things; {len(bench.ballast or []) / MIB:.0f} MiB of ballast. "
            f"Peer: llama.cpp b11549, `tools/build_peer.sh`. Command: `{' '.join(['benches/compare.py', *shown_arguments()])}`\n\n")


def shown_arguments() -> list[str]:
    """Without folders: they say nothing about the measurement."""
    return [Path(a).name if "/" in a else a for a in sys.argv[1:]]


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Hardware")):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


if __name__ == "__main__":
    sys.exit(main())
