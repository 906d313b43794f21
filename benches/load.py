#!/usr/bin/env python3
"""Load client: many streams at once against a server on this machine, and when each of their tokens arrived.

    load.py --url http://127.0.0.1:8005 --api phone --concurrency 1,8 --max-tokens 128

As a program it prints one JSON line per level of concurrency; compare.py uses it as a module. Python 3.10, standard library.

While a stream runs, only (time, bytes) are stored; they are parsed when all have ended, because the client shares the cores
with the server. Tokens are counted by the server's own count; times are taken here, from just before the connect.
"""

import argparse
import asyncio
import ipaddress
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator
from urllib.parse import urlsplit

from servers import Server

now = time.perf_counter
MOST_SILENT = 8  # so many prompts are tried


@dataclass(frozen=True)
class Call:
    """One request that asks for a stream."""
    path: str
    body: dict
    accept: str

    def bytes(self, port: int) -> bytes:
        body = json.dumps(self.body).encode()
        head = (f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {self.accept}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n")
        return head.encode() + body


def phone_call(prompt: str, max_tokens: int, model: str | None = None) -> Call:
    """Our /ai/text, as NDJSON."""
    return Call("/ai/text", {"text": prompt, "maxTokens": max_tokens, "temperature": 0, "ignoreEos": True,
                             "stream": True, "model": model}, "application/x-ndjson")


def openai_call(prompt: str, max_tokens: int) -> Call:
    """/v1/chat/completions as llama-server and we serve it, as SSE."""
    return Call("/v1/chat/completions", {
        "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}, "text/event-stream")


CALLS: dict[str, Callable[[str, int], Call]] = {"phone": phone_call, "openai": openai_call}


@dataclass
class Stream:
    """What came back for one call."""
    started: float
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float = 0.0
    failure: str | None = None  # the connection's, not the server's
    # The rest is set by parse().
    status: int = 0
    token_times: list[float] = field(default_factory=list)
    text: str = ""
    complete: bool = False  # said so by the server
    errors: list[str] = field(default_factory=list)  # said by the server
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    server_rate: float | None = None  # tokens/s by the server's own clock

    @property
    def time_to_first_token(self) -> float | None:
        return self.token_times[0] - self.started if self.token_times else None

    @property
    def is_timed(self) -> bool:
        """Whether enough was seen of it to say when it began and, if it has more than two tokens, how fast it was."""
        return len(self.token_times) >= min(self.tokens, 2) > 0

    @property
    def rate(self) -> float | None:
        """Tokens/s between the first and the last token, by our clock."""
        if len(self.token_times) < 2 or self.tokens < 2:
            return None
        return (self.tokens - 1) / (self.token_times[-1] - self.token_times[0])

    @property
    def rate_from_first(self) -> float | None:
        """Tokens/s from the first token to the end of the answer. A server that says several tokens at once says them in one event."""
        if not self.token_times or self.tokens < 2:
            return None
        return (self.tokens - 1) / (self.ended - self.token_times[0])

    def problem(self) -> str | None:
        if self.failure or self.errors:
            return self.failure or self.errors[0]
        if self.status != 200:
            return f"HTTP {self.status}"
        return None if self.complete else "the stream ended without a last event"


class Receiver(asyncio.Protocol):
    """Sends one request and stores what arrives until the server closes."""

    def __init__(self, request: bytes, stream: Stream) -> None:
        self.request, self.stream = request, stream
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.stream.arrivals.append((now(), data))

    def connection_lost(self, error: Exception | None) -> None:
        self.stream.ended = now()
        if error:
            self.stream.failure = f"connection lost: {error}"
        if not self.closed.done():
            self.closed.set_result(None)


async def send(port: int, call: Call, timeout: float = 120.0) -> Stream:
    """Runs one call to its end. Failures are told in the stream, so that one bad stream does not hide the others."""
    return await watch(port, call, Stream(started=now()), timeout)


async def watch(port: int, call: Call, stream: Stream, timeout: float = 120.0) -> Stream:
    """As send(), into a stream that the caller can look at meanwhile."""
    transport = None
    try:
        loop = asyncio.get_running_loop()
        transport, receiver = await loop.create_connection(lambda: Receiver(call.bytes(port), stream), "127.0.0.1", port)
        await asyncio.wait_for(receiver.closed, timeout)
    except (OSError, asyncio.TimeoutError) as error:
        stream.ended = now()
        stream.failure = f"{type(error).__name__}: {error}"
    finally:
        if transport:
            transport.abort()
    parse(stream)
    return stream


async def send_together(port: int, calls: list[Call], timeout: float = 120.0) -> list[Stream]:
    return list(await asyncio.gather(*(send(port, call, timeout) for call in calls)))


def one_stream(server, call: Call) -> Stream:
    return require(asyncio.run(send(server.port(), call)))


Side = tuple[Server, Callable[[str, int], Call]]


def answers(sides: list[Side], swapped: bool, prompt: Callable[[], str], n_tokens: int) -> list[Stream]:
    """What each side says to the same prompt, in turns, the last one first if `swapped`. Asks something else where one says nothing
    that can be timed: weights of noise may say nothing but marks, which nobody sees."""
    for _ in range(MOST_SILENT):
        text, streams = prompt(), {}
        for place in reversed(range(len(sides))) if swapped else range(len(sides)):
            server, call = sides[place]
            with server.turn():
                streams[place] = one_stream(server, call(text, n_tokens))
        if all(stream.is_timed for stream in streams.values()):
            return [streams[place] for place in range(len(sides))]
    raise RuntimeError(f"nothing visible was said to {MOST_SILENT} prompts")


def require(stream: Stream) -> Stream:
    if problem := stream.problem():
        raise RuntimeError(problem)
    return stream


# --------------------------------------------------------------------------
# From bytes to events
# --------------------------------------------------------------------------


def parse(stream: Stream) -> None:
    raw = b"".join(data for _, data in stream.arrivals)
    head, separator, body = raw.partition(b"\r\n\r\n")
    if not separator:
        return
    stream.status = int(head.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" in head.lower():
        spans = chunk_spans(body)
    else:
        spans = [(0, len(body))]
    payload = b"".join(body[start:end] for start, end in spans)
    position = position_in_raw(spans, len(head) + len(separator))
    arrival = arrival_of(stream.arrivals)
    for end, event in events(payload):
        take(stream, arrival(position(end)), event)


def chunk_spans(body: bytes) -> list[tuple[int, int]]:
    """Where the data of each whole chunk lies."""
    spans, at = [], 0
    while (line := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:line].split(b";")[0] or b"0", 16)
        start = line + 2
        if size == 0 or start + size > len(body):
            break
        spans.append((start, start + size))
        at = start + size + 2
    return spans


def position_in_raw(spans: list[tuple[int, int]], offset: int) -> Callable[[int], int]:
    """Maps an end in the payload to the end in the raw bytes. Asked in rising order."""
    walk = iter(spans)
    span, before = next(walk, (0, 0)), 0

    def position(end: int) -> int:
        nonlocal span, before
        while end - before > span[1] - span[0]:
            before += span[1] - span[0]
            span = next(walk)
        return offset + span[0] + end - before
    return position


def arrival_of(arrivals: list[tuple[float, bytes]]) -> Callable[[int], float]:
    """Maps an end in the raw bytes to the time when that byte had arrived. Asked in rising order."""
    walk = iter(arrivals)
    moment, data = next(walk)
    total = len(data)

    def arrival(end: int) -> float:
        nonlocal moment, total
        while total < end:
            moment, data = next(walk)
            total += len(data)
        return moment
    return arrival


def events(payload: bytes) -> Iterator[tuple[int, dict]]:
    """The JSON objects of NDJSON, SSE or a single body, each with the end of its line."""
    at = 0
    while at < len(payload):
        line_end = payload.find(b"\n", at)
        end = len(payload) if line_end < 0 else line_end + 1
        line = payload[at:end].strip()
        at = end
        line = line[5:].strip() if line.startswith(b"data:") else line
        if line.startswith(b"{"):
            yield end, json.loads(line)


def take(stream: Stream, moment: float, event: dict) -> None:
    """Reads one event of either API into the stream."""
    if event.get("type") == "error" or event.get("error"):
        stream.errors.append(str(event.get("error"))[:200])
        return
    choices = event.get("choices") or [{}]
    text = event.get("token") or (choices[0].get("delta") or {}).get("content")
    if text:
        stream.token_times.append(moment)
        stream.text += text
    if event.get("type") == "complete" or choices[0].get("finish_reason"):
        stream.complete = True
    timings, usage = event.get("timings") or {}, event.get("usage") or {}
    metadata = event.get("metadata") or {}
    stream.tokens = (usage.get("completion_tokens") or timings.get("predicted_n") or metadata.get("tokenCount")
                     or stream.tokens)
    cached = timings.get("cache_n") or 0
    stream.cached_tokens = cached or stream.cached_tokens
    prompt = timings["prompt_n"] + cached if "prompt_n" in timings else metadata.get("promptTokens")
    stream.prompt_tokens = usage.get("prompt_tokens") or prompt or stream.prompt_tokens
    stream.server_rate = timings.get("predicted_per_second") or stream.server_rate


# --------------------------------------------------------------------------
# As a program
# --------------------------------------------------------------------------


def summary(streams: list[Stream], wall_seconds: float) -> dict:
    good = [s for s in streams if not s.problem()]
    tokens = sum(s.tokens for s in good)
    gaps = [later - earlier for s in good for earlier, later in zip(s.token_times, s.token_times[1:])]
    line = {"ok": len(good), "failed": len(streams) - len(good), "tokens": tokens,
            "wall_seconds": round(wall_seconds, 3), "tokens_per_second": round(tokens / wall_seconds, 2)}
    for name, values in [("stream_tokens_per_second", [s.rate for s in good if s.rate]),
                         ("first_token_ms", [1000 * s.time_to_first_token for s in good if s.token_times]),
                         ("gap_ms", [1000 * gap for gap in gaps])]:
        line[name] = round(statistics.median(values), 2) if values else None
    if gaps:
        line["longest_gap_ms"] = round(1000 * max(gaps), 2)
    if problems := sorted({s.problem() for s in streams if s.problem()}):
        line["problems"] = problems[:3]
    return line


async def run_level(port: int, calls: list[Call], concurrency: int) -> tuple[list[Stream], float]:
    """Keeps `concurrency` streams open until all calls are done."""
    waiting, streams, start = iter(calls), [], now()

    async def client() -> None:
        for call in waiting:
            streams.append(await send(port, call))
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return streams, now() - start


def loopback_port(url: str) -> int:
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    if not ipaddress.ip_address(host).is_loopback:
        raise SystemExit(f"{url}: only servers on this machine are loaded")
    return parts.port or 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--api", choices=sorted(CALLS), default="phone")
    parser.add_argument("--concurrency", default="1", help="levels, with commas between them")
    parser.add_argument("--requests", type=int, help="per level; by default twice the level, at least 3")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompt-file", type=Path)
    arguments = parser.parse_args()
    port = loopback_port(arguments.url)
    prompt = arguments.prompt_file.read_text() if arguments.prompt_file else "Tell me a story about a lighthouse."
    for concurrency in map(int, arguments.concurrency.split(",")):
        count = arguments.requests or max(2 * concurrency, 3)
        # A number in front, so that no prompt cache answers.
        calls = [CALLS[arguments.api](f"{concurrency}/{i}: {prompt}", arguments.max_tokens) for i in range(count)]
        streams, wall_seconds = asyncio.run(run_level(port, calls, concurrency))
        print(json.dumps({"concurrency": concurrency, **summary(streams, wall_seconds)}), flush=True)


if __name__ == "__main__":
    main()
