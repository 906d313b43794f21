"""Uses a real server hard for a long time, and checks every answer: `make soak`.

Clients of all kinds ask at once: both APIs, whole and streamed, formats, embeddings, tokens, three models. A fifth of them leaves
at a random moment, a tenth sends nonsense, some never read; and the worker's process is killed, crashed and stopped again and again.

What is known to be right:
- Greedy answers are recorded first, alone, as far as each token was likelier than the next one by a margin, so that no shape of a
  batch changes them. They must come back to the letter.
- Every answer in a form has a secret of its own in it. No answer may hold another one's.
- A stream has exactly one end, which comes last; its pieces are the whole text; tokens are counted.

A request that had begun to answer when its worker was killed fails with ENGINE_DIED: counted, and right. All else that goes wrong
ends the soak with status 1: a wrong, mixed, lost or doubled answer, a request without an end in time, a request that is left over,
memory that grows. Memory is compared like with like: the medians of an early and a late part of the time, in which nothing is
killed, of the front, and of workers of the main model that have been warm for a while.
"""

import argparse
import asyncio
import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

MARGIN = 1.0  # nats by which each token of a recorded answer leads
SECRET = re.compile(r"Z[0-9a-f]{10}Q")
PATIENCE = 120.0  # seconds that any request may take, restarts of the worker included
WARM = 25.0  # seconds after which a worker's memory is that of a warm one
GROWTH = 1.05
SLACK_KIB = 2048  # of a front of 10 MiB, 5 % are less than what an allocator keeps
MOST_REFUSED = 5
SIGNALS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP]
QUESTIONS = [
    "What is the capital of France?", "What is the capital of Japan?", "What is the capital of Italy?", "What color is the sky?",
    "How many days are in a week?", "What is 2 + 2?", "Name the largest planet.", "What is the opposite of hot?",
    "Who wrote Romeo and Juliet?", "What do bees make?", "What is water made of?", "What is the capital of Germany?",
    "In which country is Madrid?", "What is the first month of the year?", "What is the capital of England?", "What is a dog?",
]
BEGINNINGS = ["The capital of France is", "Once upon a time, there was", "1, 2, 3, 4, 5, 6,", "The days of the week are Monday,",
              "The United States of", "Water freezes at"]


class Wrong(Exception):
    """An answer that must not be."""


class Cut(Wrong):
    """A body without its end."""


class Refused(Exception):
    """An answer that is an error, by its code."""

    def __init__(self, code, status=None):
        super().__init__(code)
        self.code, self.status = code, status


# ---------------------------------------------------------------------------------------------------------------- HTTP


async def read_head(reader):
    line = await reader.readline()
    if not line.startswith(b"HTTP/1.1 "):
        raise Wrong(f"no answer but {line[:80]!r}")
    status, headers = int(line.split()[1]), {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        headers[name.decode().lower()] = value.strip().decode()
    return status, headers


async def read_body(reader, headers):
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    parts = []
    while True:
        size = await reader.readline()
        if not size.strip():
            raise Cut("a body was cut")
        try:
            part = await reader.readexactly(int(size, 16) + 2)
        except EOFError:
            raise Cut("a body was cut") from None
        if len(part) == 2:
            return b"".join(parts)
        parts.append(part[:-2])


def head_of(method, path, body, headers=""):
    return (f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


async def ask(address, path, body=None, headers="", method="POST"):
    data = b"" if body is None else json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(*address, limit=1 << 22)
    try:
        writer.write(head_of(method, path, data, headers))
        await writer.drain()
        status, got = await read_head(reader)
        return status, got, (await read_body(reader, got)).decode()
    finally:
        writer.close()


async def get(address, path):
    return (await ask(address, path, method="GET"))[2]


def checked(status, text):
    """The object of a whole answer."""
    answer = json.loads(text)
    if status != 200:
        error = answer.get("error")
        code = answer.get("code") if isinstance(error, str) else (error or {}).get("code")
        raise Refused(str(code).upper(), status)
    return answer


def events_of(text):
    return [line[6:] for line in text.split("\n") if line.startswith("data: ")]


# ------------------------------------------------------------------------------------------------------- right answers


def whole_chat(text, choices=1):
    """The text of each choice of a streamed chat, which must end as promised."""
    events = events_of(text)
    if not events:
        raise Wrong("a stream without an event")
    objects = [json.loads(event) for event in events if event != "[DONE]"]
    failed = [event for event in objects if "error" in event]
    if failed:
        if len(failed) > 1 or "error" not in objects[-1] or "[DONE]" in events:
            raise Wrong("something after an error in a stream")
        raise Refused(str(failed[0]["error"].get("code")).upper())
    if events.count("[DONE]") != 1 or events[-1] != "[DONE]":
        raise Wrong(f"[DONE] {events.count('[DONE]')} times, or not last")
    said, ends, counted = [""] * choices, [0] * choices, 0
    for event in objects:
        counted += event.get("usage") is not None
        for choice in event["choices"]:
            at = choice["index"]
            if ends[at]:
                raise Wrong("text after a choice's end")
            said[at] += choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
            ends[at] += choice["finish_reason"] is not None
    if ends != [1] * choices or counted != 1:
        raise Wrong(f"choices ended {ends} times, and tokens were counted {counted} times")
    return said


def whole_phone(lines):
    """The text of a streamed answer of the phone API."""
    objects = [json.loads(line) for line in lines if line.strip()]
    ends = [event for event in objects if event["type"] in ("complete", "error")]
    if len(ends) != 1 or objects[-1] is not ends[0]:
        raise Wrong(f"{len(ends)} ends in a stream, or not last")
    if ends[0]["type"] == "error":
        raise Refused(ends[0]["code"])
    said = "".join(event["token"] for event in objects if event["type"] == "token")
    if said != ends[0]["fullText"]:
        raise Wrong("a stream's pieces are not its text")
    if ends[0]["usage"]["completionTokens"] < 1:
        raise Wrong("no tokens counted")
    return said


def leads(logprobs):
    """How many tokens lead by the margin from the first on."""
    for count, entry in enumerate(logprobs):
        top = sorted((one["logprob"] for one in entry["top_logprobs"]), reverse=True)
        if len(top) < 2 or top[0] - top[1] < MARGIN:
            return count
    return len(logprobs)


async def record(address):
    """Answers that no shape of a batch changes."""
    chats, texts = {}, {}
    for question in QUESTIONS:
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 16, "logprobs": True,
                "top_logprobs": 2}
        answer = checked(*(await ask(address, "/v1/chat/completions", body))[::2])
        sure = leads(answer["choices"][0]["logprobs"]["content"])
        if sure >= 3:
            del body["logprobs"], body["top_logprobs"]
            body["max_tokens"] = sure
            again = checked(*(await ask(address, "/v1/chat/completions", body))[::2])
            chats[question] = (sure, again["choices"][0]["message"]["content"])
    for beginning in BEGINNINGS:
        body = {"prompt": beginning, "temperature": 0, "max_tokens": 12, "logprobs": 2}
        answer = checked(*(await ask(address, "/v1/completions", body))[::2])
        tops = answer["choices"][0]["logprobs"]["top_logprobs"]
        sure = leads([{"top_logprobs": [{"logprob": value} for value in top.values()]} for top in tops])
        if sure >= 2:
            del body["logprobs"]
            body["max_tokens"] = sure
            texts[beginning] = (sure, checked(*(await ask(address, "/v1/completions", body))[::2])["choices"][0]["text"])
    if len(chats) < 4 or len(texts) < 2:
        raise SystemExit(f"soak: only {len(chats)} chats and {len(texts)} texts have sure answers")
    vectors = {}
    for question in QUESTIONS[:3]:
        answer = checked(*(await ask(address, "/v1/embeddings", {"input": question}))[::2])
        tokens = checked(*(await ask(address, "/tokenize", {"content": question}))[::2])["tokens"]
        vectors[question] = (answer["data"][0]["embedding"], tokens)
    return chats, texts, vectors


# ------------------------------------------------------------------------------------------------------------ the soak


class Soak:
    def __init__(self, address, pid, models, options):
        self.address, self.pid, self.models, self.options = address, pid, models, options
        self.random = random.Random(options.seed)
        self.outcomes = collections.Counter()
        self.kinds = collections.Counter()
        self.wrongs = []
        self.slowest = (0.0, "")
        self.kills = collections.Counter()
        self.samples = []  # (time, front KiB, main worker KiB or None)
        self.began = time.monotonic()
        self.end = self.began + options.minutes * 60

    # -- kinds of requests: each gives path, body, headers, and what checks the answer

    def secret(self):
        return f"Z{self.random.getrandbits(40):010x}Q"

    def model(self):
        return self.models[0]

    def chat(self):
        question, (tokens, right) = self.random.choice(list(self.chats.items()))
        body = {"model": self.model(), "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": tokens}

        def check(status, text):
            answer = checked(status, text)
            equal(answer["choices"][0]["message"]["content"], right)
            equal(answer["usage"]["completion_tokens"] <= tokens, True)

        return "/v1/chat/completions", body, "", check

    def chat_stream(self):
        path, body, headers, _ = self.chat()
        right = self.chats[body["messages"][0]["content"]][1]
        choices = self.random.choice([1, 1, 2])
        body |= {"stream": True, "stream_options": {"include_usage": True}, "n": choices}
        return path, body, headers, lambda status, text: equal(streamed(status, text, choices), [right] * choices)

    def text_stream(self):
        beginning, (tokens, right) = self.random.choice(list(self.texts.items()))
        body = {"prompt": beginning, "temperature": 0, "max_tokens": tokens}
        if self.random.random() < 0.5:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            return "/v1/completions", body, "", lambda status, text: equal(streamed(status, text, 1), [right])
        return "/v1/completions", body, "", lambda status, text: equal(checked(status, text)["choices"][0]["text"], right)

    def phone(self):
        question, (tokens, right) = self.random.choice(list(self.chats.items()))
        body = {"text": question, "temperature": 0, "maxTokens": tokens}
        kind = self.random.choice(["whole", "sse", "ndjson", "plain"])
        if kind == "whole":
            return "/ai/text", body, "", lambda status, text: equal(checked(status, text)["response"], right)
        accept = {"sse": "text/event-stream", "ndjson": "application/x-ndjson", "plain": "text/plain"}[kind]

        def check(status, text):
            if status != 200:
                checked(status, text)
            if kind == "plain":
                equal(text, right)
            else:
                equal(whole_phone(events_of(text) if kind == "sse" else text.split("\n")), right)

        return "/ai/text", body, f"Accept: {accept}\r\n", check

    def form(self, model=None):
        """An answer that can only be one text, with a secret in it."""
        secret = self.secret()
        schema = {"type": "object", "properties": {"code": {"const": secret}}, "required": ["code"], "additionalProperties": False}
        right = {"code": secret}
        if self.random.random() < 0.5:
            body = {"text": "Say the code.", "format": schema, "maxTokens": 64, "model": model or self.model()}
            return "/ai/text", body, "", lambda status, text: equal(json.loads(checked(status, text)["response"]), right)
        body = {"messages": [{"role": "user", "content": "Say the code."}], "max_tokens": 64, "model": model or self.model(),
                "response_format": {"type": "json_schema", "json_schema": {"name": "code", "schema": schema}}}
        if self.random.random() < 0.5:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            return ("/v1/chat/completions", body, "",
                    lambda status, text: equal(json.loads(streamed(status, text, 1)[0]), right))
        return ("/v1/chat/completions", body, "",
                lambda status, text: equal(json.loads(checked(status, text)["choices"][0]["message"]["content"]), right))

    def response(self):
        question, (tokens, right) = self.random.choice(list(self.chats.items()))
        body = {"input": question, "temperature": 0, "max_output_tokens": tokens}

        def check(status, text):
            said = checked(status, text)["output"][-1]["content"][0]["text"]
            equal(said, right)

        return "/v1/responses", body, "", check

    def embedding(self):
        question, (right, _) = self.random.choice(list(self.vectors.items()))

        def check(status, text):
            got = checked(status, text)["data"][0]["embedding"]
            equal(sum(a * b for a, b in zip(got, right, strict=True)) > 0.999, True)

        return "/v1/embeddings", {"input": question}, "", check

    def tokens(self):
        question, (_, tokens) = self.random.choice(list(self.vectors.items()))
        if self.random.random() < 0.5:
            return "/detokenize", {"tokens": tokens}, "", lambda status, text: equal(checked(status, text)["content"], question)
        return "/tokenize", {"content": question}, "", lambda status, text: equal(checked(status, text)["tokens"], tokens)

    def request(self):
        kinds = [(self.chat, 4), (self.chat_stream, 5), (self.text_stream, 4), (self.phone, 6), (self.form, 4), (self.response, 2),
                 (self.embedding, 1), (self.tokens, 3)]
        kind = self.random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
        self.kinds[kind.__name__] += 1
        return kind()

    # -- clients

    async def client(self):
        while time.monotonic() < self.end:
            dice = self.random.random()
            if dice < 0.2:
                await self.one("cancelled", self.leave())
            elif dice < 0.3:
                await self.one("malformed", self.nonsense())
            else:
                await self.one("answered", self.served(self.request()))

    async def one(self, outcome, work):
        """Counts how a request ended."""
        began = time.monotonic()
        try:
            await asyncio.wait_for(work, PATIENCE)
            self.outcomes[outcome] += 1
        except Refused as refused:
            self.outcomes[f"error {refused.code}"] += 1
            await asyncio.sleep(0.2)
        except TimeoutError:
            self.wrong(f"a request ({outcome}) had no end in {PATIENCE} s")
        except Wrong as wrong:
            self.wrong(str(wrong))
        except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
            self.wrong(f"{outcome}: {type(error).__name__}: {error}")
        took = time.monotonic() - began
        self.slowest = max(self.slowest, (took, outcome))

    def wrong(self, what):
        self.wrongs.append(what)
        print(f"soak: WRONG after {time.monotonic() - self.began:.0f} s: {what}", flush=True)

    async def served(self, request):
        path, body, headers, check = request
        try:
            status, _, text = await ask(self.address, path, body, headers)
        except Cut:
            # Bare text has no other way to say that an answer has no end.
            if "text/plain" not in headers:
                raise
            raise Refused("ENGINE_DIED") from None
        own = set(SECRET.findall(json.dumps(body)))
        if others := set(SECRET.findall(text)) - own:
            raise Wrong(f"{path}: the secret of another request: {others}")
        try:
            check(status, text)
        except (Wrong, Refused) as error:
            if isinstance(error, Wrong):
                raise Wrong(f"{path}: {error}") from None
            raise

    async def leave(self):
        """Asks, and leaves at some moment: in the middle of the body, while waiting, in the middle of the answer."""
        path, body, headers, _ = self.request()
        data = head_of("POST", path, json.dumps(body).encode(), headers)
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            is_cut = self.random.random() < 0.2
            if is_cut:
                data = data[: self.random.randrange(len(data))]
            writer.write(data)
            await writer.drain()
            moment = asyncio.sleep(self.random.random() ** 2 * 0.4)
            if is_cut or self.random.random() < 0.5:
                await moment
            else:
                await asyncio.gather(moment, asyncio.wait_for(reader.read(1), PATIENCE))
        finally:
            # As a rule by an end, else by a reset.
            if self.random.random() < 0.3:
                writer.transport.abort()
            writer.close()

    async def nonsense(self):
        """What is refused, with the status that it must have."""
        ask_ = "/v1/chat/completions"
        bodies = [
            (ask_, b'{"messages":', 400), (ask_, b"[]", 400), (ask_, b'{"messages":[]}', 400), (ask_, b"\xff\xfe", 400),
            (ask_, b'{"messages":' + b"[" * 300 + b"]" * 300 + b"}", 400),
            (ask_, b'{"messages":[{"role":"user","content":"a"}],"temperature":"hot"}', 400),
            (ask_, b'{"model":"\\n../../etc/passwd","messages":[{"role":"user","content":"a"}]}', 404),
            ("/ai/text", b'{"text":""}', 400), ("/ai/text", b"", 400), ("/ai/text", b'{"text":"a","image":"x"}', 400),
            ("/ai/text", b'{"text":"a","format":{"type":"object","$ref":"#/nowhere"}}', 400),
            ("/ai/text", b'{"text":"' + b"word " * 6000 + b'"}', 400), ("/nothing", b"{}", 404),
            ("/v1/embeddings", b'{"input":[]}', 400), ("/detokenize", b'{"tokens":[4000000000]}', 400),
        ]
        path, body, right = self.random.choice(bodies)
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            if self.random.random() < 0.1:
                writer.write(self.random.choice([b"\x16\x03\x01\x00", b"GET\r\n\r\n", b"POST /ai/text HTTP/9.9\r\n\r\n"]))
                await asyncio.wait_for(reader.read(), PATIENCE)
                return
            writer.write(head_of("POST", path, body))
            await writer.drain()
            status, headers = await read_head(reader)
            text = (await read_body(reader, headers)).decode()
            if status in (502, 503):
                checked(status, text)
            if status != right:
                raise Wrong(f"{path} with {body[:40]!r}: {status}, not {right}: {text[:200]}")
        finally:
            writer.close()

    async def never_reads(self):
        while time.monotonic() < self.end:
            body = {"text": "Tell me a long story.", "maxTokens": 48, "ignoreEos": True, "stream": True}
            reader, writer = await asyncio.open_connection(*self.address, limit=64)
            writer.write(head_of("POST", "/ai/text", json.dumps(body).encode()))
            await asyncio.sleep(self.random.uniform(3, 15))
            writer.transport.abort()
            self.outcomes["never read"] += 1
            del reader

    async def switches(self):
        """Bursts for other models; for two at once in the middle of the time, so that all three can't stay."""
        while time.monotonic() < self.end:
            await asyncio.sleep(min(10.0, self.options.minutes * 3))
            others = self.models[1:] if self.is_rough() else self.models[1:2]
            asked = [self.one("answered", self.served(self.form(model))) for model in others for _ in range(2)]
            await asyncio.gather(*asked)

    def part(self):
        return (time.monotonic() - self.began) / (self.options.minutes * 60)

    def is_rough(self):
        return 0.2 <= self.part() <= 0.8

    async def killer(self):
        """Signals to workers of ours, in the middle of the time."""
        kills = self.options.kills
        for kill in range(kills):
            while self.part() < 0.2 + 0.6 * kill / max(kills, 1):
                await asyncio.sleep(0.1)
            while not (workers := children(self.pid)):
                await asyncio.sleep(0.05)
            chosen = SIGNALS[kill % len(SIGNALS)]
            try:
                os.kill(self.random.choice(workers), chosen)
                self.kills[chosen.name] += 1
            except ProcessLookupError:
                pass

    async def sampler(self):
        while time.monotonic() < self.end:
            models = json.loads(await get(self.address, "/status"))["models"]
            pids = [model["worker"]["pid"] for model in models if model["name"] == self.model() and model["worker"]["pid"]]
            warm = [rss(pid) for pid in pids if age(pid) > WARM]
            self.samples.append((self.part(), rss(self.pid), max(warm, default=None)))
            await asyncio.sleep(2)

    async def run(self):
        self.chats, self.texts, self.vectors = await record(self.address)
        print(f"soak: {len(self.chats)} chats and {len(self.texts)} texts have sure answers", flush=True)
        self.began = time.monotonic()
        self.end = self.began + self.options.minutes * 60
        tasks = [self.client() for _ in range(self.options.clients)]
        tasks += [self.never_reads(), self.switches(), self.killer(), self.sampler()]
        await asyncio.gather(*tasks)
        await self.settle()

    async def settle(self):
        """Nothing may be left."""
        for _ in range(200):
            metrics = await get(self.address, "/metrics")
            left = [value(metrics, name) for name in ("requests_running", "requests_queued")]
            if left == [0, 0]:
                break
            await asyncio.sleep(0.1)
        else:
            self.wrong(f"{left} requests are left running and queued")
        self.restarts = value(metrics, "worker_restarts_total")
        self.loads = value(metrics, "model_loads_total")

    # -- the report

    def memory(self):
        """Early and late medians, in KiB, of the front and of warm workers."""
        rows = []
        for name, at in (("front", 1), ("worker", 2)):
            early = [sample[at] for sample in self.samples if 0.1 <= sample[0] < 0.25 and sample[at]]
            late = [sample[at] for sample in self.samples if sample[0] > 0.85 and sample[at]]
            if not early or not late:
                rows.append((name, None, None))
                continue
            early, late = statistics.median(early), statistics.median(late)
            rows.append((name, early, late))
            if late > max(early * GROWTH, early + SLACK_KIB):
                self.wrong(f"the {name} grew from {early / 1024:.1f} to {late / 1024:.1f} MiB")
        return rows

    def report(self):
        memory = self.memory()
        died = self.outcomes["error ENGINE_DIED"]
        kills = sum(self.kills.values())
        if died > kills * (self.options.clients + 8):
            self.wrong(f"{died} answers were lost to {kills} kills")
        refused = self.outcomes["error REQUEST_REFUSED"]
        if refused > MOST_REFUSED:
            self.wrong(f"{refused} requests were refused")
        known = ("ENGINE_DIED", "REQUEST_REFUSED", "NOT_READY", "OVERLOADED")
        for outcome in self.outcomes:
            if outcome.startswith("error ") and outcome.removeprefix("error ") not in known:
                self.wrong(f"{self.outcomes[outcome]} times {outcome}")
        total = sum(self.outcomes.values())
        print(f"\nsoak: {total} requests in {self.options.minutes:g} minutes, {self.options.clients} clients, seed {self.options.seed}")
        for outcome, count in sorted(self.outcomes.items()):
            print(f"  {count:6} {count / max(total, 1):6.1%}  {outcome}")
        print("  kinds:", ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items())))
        print(f"  kills: {dict(self.kills)}; worker restarts {self.restarts}, model loads {self.loads}")
        print(f"  slowest request: {self.slowest[0]:.1f} s ({self.slowest[1]})")
        for name, early, late in memory:
            if early is None:
                print(f"  memory of the {name}: too few samples of a warm one to compare")
            else:
                print(f"  memory of the {name}: {early / 1024:.1f} → {late / 1024:.1f} MiB ({late / early - 1:+.1%})")
        print(f"  wrong: {len(self.wrongs)}", flush=True)


def equal(got, right):
    if got != right:
        raise Wrong(f"{got!r}, not {right!r}")


def streamed(status, text, choices):
    if status != 200:
        checked(status, text)
    return whole_chat(text, choices)


def value(metrics, name):
    found = re.search(rf"^pocket_llm_{name} (\S+)$", metrics, re.MULTILINE)
    return int(float(found[1])) if found else 0


# ----------------------------------------------------------------------------------------------------------- processes


def stat(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None


def children(parent):
    """Processes of ours: children of the server, and of nobody else."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(entry.name)) and fields[1] == str(parent) and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def age(pid):
    fields = stat(pid)
    up = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    return up - int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def rss(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def start(options, store, log):
    for model in (options.model, *options.others):
        link = store / pathlib.Path(model).name
        os.symlink(os.path.abspath(model), link) if options.link else shutil.copyfile(model, link)
    main = pathlib.Path(options.model).stem
    names = [main] + [pathlib.Path(model).stem for model in options.others]
    command = [options.server, "serve", main, "--models", store, "--port", "0", "--models-max", "2", "--sleep-idle-seconds", "8",
               "--parallel", "4", "--ctx-size", "8192", "--batch-size", "48", "--stall-seconds", "2", "--log", "warn"]
    if options.threads:
        command += ["--threads", str(options.threads)]
    clean = {name: text for name, text in os.environ.items() if not name.startswith("POCKET_LLM_")}
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=clean)
    line = server.stdout.readline().strip()
    if not line.startswith("listening on http://"):
        raise SystemExit(f"soak: the server said {line!r}")
    host, port = line.removeprefix("listening on http://").rsplit(":", 1)
    return server, (host, int(port)), names


async def ready(address):
    for _ in range(1200):
        if (await ask(address, "/readyz", method="GET"))[0] == 200:
            return
        await asyncio.sleep(0.1)
    raise SystemExit("soak: the server is never ready")


async def probe(address, probes):
    """Time to the first byte of /livez while prompts of nearly the whole context are decoded without a pause."""
    words = " ".join(f"word{number}" for number in range(2000))
    for count in range(4000, 12_000, 100):
        tokens = checked(*(await ask(address, "/tokenize", {"content": words[:count]}))[::2])["tokens"]
        if len(tokens) > 1950:
            break
    stop = False
    prefills = 0

    async def prefill():
        nonlocal prefills
        while not stop:
            body = {"prompt": tokens[:1950], "max_tokens": 1, "cache_prompt": False}
            checked(*(await ask(address, "/v1/completions", body))[::2])
            prefills += 1

    busy = asyncio.create_task(prefill())
    await asyncio.sleep(0.5)
    times = []
    for _ in range(probes):
        reader, writer = await asyncio.open_connection(*address)
        began = time.perf_counter()
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readexactly(1)
        times.append((time.perf_counter() - began) * 1000)
        writer.close()
        await asyncio.sleep(0.05)
    stop = True
    await busy
    times.sort()
    p99 = times[int(len(times) * 0.99)]
    print(f"soak: /livez during {prefills} prefills of 1950 tokens, {probes} probes: first byte after "
          f"{times[len(times) // 2]:.2f} ms (median), {p99:.2f} ms (p99), {times[-1]:.2f} ms (slowest)", flush=True)
    return p99


async def main(options):
    for end in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(end, asyncio.current_task().cancel)
    store = pathlib.Path(tempfile.mkdtemp(prefix="pocket-llm-soak-"))
    with open(store / "server.log", "w+", encoding="utf-8") as log:
        server, address, names = start(options, store, log)
        failed = False
        try:
            await ready(address)
            if options.probes:
                failed |= await probe(address, options.probes) >= 50
            if options.minutes:
                soak = Soak(address, server.pid, names, options)
                await soak.run()
                soak.report()
                failed |= bool(soak.wrongs)
        finally:
            left = children(server.pid)
            server.send_signal(signal.SIGTERM)
            try:
                status = server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()
                status = server.wait()
            print(f"soak: the server ended with {status}", flush=True)
            failed |= status != 0
            failed |= any(stat(pid) and stat(pid)[0] != "Z" and stat(pid)[1] == str(server.pid) for pid in left)
            log.seek(0)
            panics = [line for line in log if "panicked" in line]
            if panics:
                failed = True
                print("soak: the log has panics:", *panics[:5], sep="\n  ")
            if options.keep_log:
                shutil.copyfile(store / "server.log", options.keep_log)
            shutil.rmtree(store)
    return int(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Uses a real server hard for a long time, and checks every answer.")
    parser.add_argument("--server", required=True, help="the program")
    parser.add_argument("--model", required=True, help="the main model's file: a chat model")
    parser.add_argument("--others", nargs=2, required=True, help="files of two small models that come and go")
    parser.add_argument("--minutes", type=float, default=30, help="0 for the probes only")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kills", type=int, default=None, help="of workers (default: 20 in 30 minutes)")
    parser.add_argument("--probes", type=int, default=600, help="of /livez during prefills, before the soak")
    parser.add_argument("--threads", type=int, help="of the server: 1 where something else computes on this machine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--link", action="store_true", help="link the models into the store instead of copying them")
    parser.add_argument("--keep-log", help="where to keep the server's log")
    chosen = parser.parse_args()
    if chosen.kills is None:
        chosen.kills = max(1, round(chosen.minutes * 20 / 30)) if chosen.minutes else 0
    sys.exit(asyncio.run(main(chosen)))
