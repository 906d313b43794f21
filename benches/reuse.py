"""The parts of compare.py about work that is not done twice: shared prompts, and tokens that were said before."""

import asyncio
import json
import statistics
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Callable

import load
import servers
from load import Call, Stream, now, one_stream, require
from report import Row, limit_row, paired_row, spread
from servers import Server

MIB = 1 << 20
N_TOGETHER = 10
N_ARRIVALS = 7
BEGINS_SECONDS = 15  # then streams that were not seen say nothing visible
CONTEXT = 2048
LONG_TOKENS = 1500
SENTENCES = ["The tide was low and the boats lay on their sides.", "A dog slept under the bench by the door.",
             "Somebody had left a lamp burning in the tower.", "The letter was three weeks old and still sealed.",
             "Nobody in the village spoke of the bridge.", "Two men carried a table down the hill.",
             "The clock in the hall had stopped at nine.", "Rain came in from the west before noon."]


def text_of(n_tokens: int, first: str = "") -> str:
    """About as many tokens: a sentence with its number has about 14."""
    sentences = [first] if first else []
    while 14 * len(sentences) < n_tokens:
        sentences.append(f"{len(sentences)}. {SENTENCES[len(sentences) % len(SENTENCES)]}")
    return " ".join(sentences)


def ttft(streams: list[Stream]) -> list[float]:
    return [require(stream).time_to_first_token for stream in streams]


# --------------------------------------------------------------------------
# Prompts that begin alike
# --------------------------------------------------------------------------


def prefix(bench) -> list[Row]:
    ours, peer, decoded, peer_decoded = [], [], [], []
    flags = {"n_streams": N_TOGETHER}
    with bench.ours_ready("--ctx-size", str(N_TOGETHER * CONTEXT), **flags) as server, \
            bench.llama_server_ready(context=CONTEXT, **flags) as llama_server:
        limits = []
        server.pause()
        llama_server.pause()
        for repetition in bench.quiet_repetitions():
            questions = alike(f"Round {repetition} of the reading. ")
            with server.turn():
                before = server.metric("pocket_llm_worker_prefill_rows_total")
                streams = asyncio.run(load.send_together(server.port(), [load.phone_call(q, 16) for q in questions]))
                ours.append(statistics.median(ttft(streams)))
                decoded.append(server.metric("pocket_llm_worker_prefill_rows_total") - before)
            with llama_server.turn():
                streams = asyncio.run(load.send_together(llama_server.port(), [load.openai_call(q, 16) for q in questions]))
                peer.append(statistics.median(ttft(streams)))
                peer_decoded.append(sum(stream.prompt_tokens - stream.cached_tokens for stream in streams))
                limits.append(least_tokens([prompt_tokens(llama_server, question) for question in questions]))
    n_prompt = statistics.median(stream.prompt_tokens for stream in streams)
    limit = statistics.median(limits)
    return [paired_row(f"{N_TOGETHER} at once whose prompts ({n_prompt:.0f} tokens) begin with the same 500, median time to the first token, s",
                       ours, peer, 0.25, "llama-server", most=True),
            Row("– prompt tokens decoded, of all ten", spread(decoded), spread(peer_decoded),
                f"≤ {limit:.0f}: the same part once, and the others", statistics.median(decoded) <= limit)]


def prompt_tokens(llama_server: Server, question: str) -> list[int]:
    """As the model's template makes them."""
    messages = {"messages": [{"role": "user", "content": question}]}
    prompt = json.loads(llama_server.post("/apply-template", messages))["prompt"]
    body = {"content": prompt, "add_special": True, "parse_special": True}
    return json.loads(llama_server.post("/tokenize", body))["tokens"]


def least_tokens(prompts: list[list[int]]) -> int:
    """What must be decoded of some prompts if what all begin with is decoded once."""
    same = 0
    for tokens_there in zip(*prompts):
        if len(set(tokens_there)) > 1:
            break
        same += 1
    return same + sum(len(prompt) - same for prompt in prompts)


def alike(first: str) -> list[str]:
    prefix = text_of(490, first)
    return [f"{prefix} Question {number}: what does sentence {number} say?" for number in range(N_TOGETHER)]


def arrival(bench) -> list[Row]:
    """Streams run; a long prompt comes. Each side's slowest gap between tokens from then until its first token."""
    gaps, peer_gaps, waits, peer_waits = [], [], [], []
    flags = {"n_streams": N_ARRIVALS + 1}
    with bench.ours_ready("--ctx-size", str((N_ARRIVALS + 1) * CONTEXT), "--speculate", "off", **flags) as server, \
            bench.llama_server_ready(context=CONTEXT, **flags) as llama_server:
        sides = [(server, load.phone_call, gaps, waits), (llama_server, load.openai_call, peer_gaps, peer_waits)]
        server.pause()
        llama_server.pause()
        for repetition in bench.quiet_repetitions():
            for side, call, gap, wait in sides if repetition % 2 == 0 else reversed(sides):
                with side.turn():
                    slowest, seconds = amid_streams(side, bench, call)
                gap.append(slowest)
                wait.append(seconds)
    return [paired_row(f"a prompt of {LONG_TOKENS} tokens amid {N_ARRIVALS} streams: their slowest inter-token gap, s", gaps, peer_gaps,
                       1 / 3, "llama-server", most=True),
            paired_row("– its time to the first token, s", waits, peer_waits, 1.1, "llama-server", most=True)]


def amid_streams(server: Server, bench, call: Callable[[str, int], Call]) -> tuple[float, float]:
    for _ in range(load.MOST_SILENT):
        if (found := asyncio.run(long_amid_streams(server, bench, call))) is not None:
            return found
    raise RuntimeError(f"nothing visible was said to {load.MOST_SILENT} times {N_ARRIVALS} prompts")


async def long_amid_streams(server: Server, bench, call: Callable[[str, int], Call]) -> tuple[float, float] | None:
    """None if a stream does not begin within the time for it, or says nothing that is seen."""
    calls = [call(bench.prompt(), 900) for _ in range(N_ARRIVALS)]
    running = [Stream(started=now()) for _ in calls]
    watching = [asyncio.create_task(load.watch(server.port(), c, s)) for c, s in zip(calls, running)]
    deadline = now() + BEGINS_SECONDS
    while not (begun := all(len(stream.arrivals) > 8 for stream in running)) and now() < deadline:
        await asyncio.sleep(0.01)
    began, long = now(), None
    if begun:
        long = require(await load.send(server.port(), call(text_of(LONG_TOKENS, bench.prompt()), 4)))
    ended = now()
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    if long is None or long.time_to_first_token is None:
        return None
    slowest = 0.0
    for stream in running:
        load.parse(stream)
        times = [time for time in stream.token_times if began - 1 <= time <= ended]
        slowest = max([slowest, *(after - before for before, after in zip(times, times[1:]) if after >= began)])
    await asyncio.sleep(0.5)
    return slowest, long.time_to_first_token


# --------------------------------------------------------------------------
# Tokens that were said before
# --------------------------------------------------------------------------

COPIED = [
    "The old lighthouse keeper climbed the spiral stairs every evening at seven o'clock. He carried a small brass lamp, a flask of tea and "
    "a notebook bound in green leather. In the notebook he wrote down the names of the ships that passed, the direction of the wind and "
    "the height of the waves. On quiet nights he also wrote short letters to his sister, who lived in a town far from the sea.",
    "Dear Ms. Okafor, thank you for your order of 14 March. Two of the three chairs were sent on Monday and should be with you by the "
    "end of the week. The third one, in walnut, is made to order and leaves our workshop in about twenty days. If you would rather have "
    "all of them at once, please tell us before Friday and we will hold the first two back. Kind regards, Tomas Lind.",
    "To reset the router, press the small button beside the power socket for ten seconds, until the orange light blinks twice. Wait for "
    "about three minutes. Then join the network whose name is printed on the label, open the page of the settings, and choose a new "
    "password of at least twelve characters. Do not unplug the router while the light is red, because it writes its memory then.",
    "Bees find their way home by the sun, and when it is hidden they read the pattern of its light in the blue parts of the sky. A bee "
    "that found flowers tells the others in the dark of the hive: she walks in a figure of eight, and the angle of her path says where "
    "the field lies, while the number of her turns says how far it is. Those who follow her go there without ever having seen it.",
    "The council met on Tuesday with nine of eleven members present. It agreed to repair the footbridge at Mill Lane before winter, at a "
    "cost of 48,000 euros, and to close it for traffic from 3 to 28 October. A second reading of the plan for the market square was put "
    "off, since the report on drainage is still missing. The treasurer asked that all invoices reach her by the end of the month.",
]
REWRITTEN = {
    "read_items": """def load(path):
    with open(path) as f:
        data = json.load(f)
    result = []
    for item in data["items"]:
        if item["kind"] == "book":
            result.append({"title": item["title"], "author": item["author"], "year": item["year"]})
        elif item["kind"] == "film":
            result.append({"title": item["title"], "director": item["director"], "year": item["year"]})
    return result""",
    "total_price": """def total(basket, discounts):
    price = 0
    for item in basket:
        cost = item.price * item.count
        if item.code in discounts:
            cost = cost * (100 - discounts[item.code]) / 100
        price += cost
    if price > 100:
        price = price - 10
    return round(price, 2)""",
    "find_words": """def words(text, longest=12):
    found = {}
    for line in text.splitlines():
        for word in line.lower().split():
            word = word.strip(".,;:!?")
            if word and len(word) <= longest:
                found[word] = found.get(word, 0) + 1
    return sorted(found.items(), key=lambda pair: pair[1], reverse=True)""",
    "merge_sorted": """def merge(left, right):
    merged = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]""",
    "parse_row": """def row(line, names):
    values = line.rstrip("\\n").split(",")
    if len(values) != len(names):
        raise ValueError(f"{len(values)} values for {len(names)} names")
    entry = {}
    for name, value in zip(names, values):
        entry[name] = None if value == "" else value.strip()
    return entry""",
}
ANIMALS = ["a cat who sails", "a dog who bakes", "a crow who counts", "a bear who paints", "a fox who sings"]
PASSES = ["1", "2", "3", "4", "6", "8", "12", "16", "20", "24", "28", "32"]
BETWEEN = -1  # stands between two texts, and is no token
WITHOUT, GUESSING = "without", "guessing"
FIRST, AGAIN = "first", "again"
NEW = "Write a long story about {}."
# Prompts of each kind, and how many tokens are asked for at most.
SETS = {
    "a text is copied": ([f"Repeat the following text exactly, word for word:\n\n{text}" for text in COPIED], 120),
    "code is rewritten": ([f"Rewrite this Python code with the function renamed to {name}, and print the whole code:\n\n```python\n{code}\n```"
                           for name, code in REWRITTEN.items()], 150),
    "new stories": ([NEW.format(animal) for animal in ANIMALS], 200),
}
# What llama-server can guess with and no second model; the windows that did best here beside its defaults.
PEER_GUESSES = {
    "ngram-simple": ["--spec-type", "ngram-simple"],
    "ngram-mod": ["--spec-type", "ngram-mod"],
    "ngram-mod, short": ["--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "8", "--spec-ngram-mod-n-min", "4",
                         "--spec-ngram-mod-n-max", "32"],
    "ngram-map-k": ["--spec-type", "ngram-map-k"],
    "ngram-map-k4v": ["--spec-type", "ngram-map-k4v"],
}


@dataclass
class Passes:
    """What passes take, as multiples of a pass of one row."""
    costs: dict[int, float]

    def cost(self, rows: int) -> float:
        """Of as many rows, from those that were measured."""
        known = sorted(self.costs)
        below, above = max(n for n in known if n <= rows), min(n for n in known if n >= rows)
        if below == above:
            return self.costs[below]
        return self.costs[below] + (self.costs[above] - self.costs[below]) * (rows - below) / (above - below)

    @property
    def row(self) -> float:
        """A row of the largest one."""
        most = max(self.costs)
        return self.costs[most] / most


def drafts(bench) -> list[Row]:
    """Greedy answers, each asked for twice: as new work, and as work that was done before. Prompts are not cached in either."""
    passes = measured_passes(bench)
    with ExitStack() as stack:
        ways = {WITHOUT: bench.ours_ready("--speculate", "off"), GUESSING: bench.ours_ready(),
                **{name: bench.llama_server_ready(*flags) for name, flags in PEER_GUESSES.items()}}
        ways = {name: stack.enter_context(way) for name, way in ways.items()}
        for server in ways.values():
            server.pause()
        found = asked_twice(ways, bench.repetitions)
        with ways[WITHOUT].turn() as server:
            bounds = {kind: bounds_of(kind, found, passes, lambda text: tokens(server, text)) for kind in found}
    rows = [Row("a row of a pass of 32 costs this part of a pass of one; drafts can't gain more than its inverse",
                f"{passes.row:.3f}, inverse {1 / passes.row:.2f}")]
    for kind, of_ways in found.items():
        ours, plain = rates(of_ways[GUESSING]), rates(of_ways[WITHOUT])
        gains = [guessed / without for guessed, without in zip(ours, plain)]
        gain = statistics.median(gains)
        of_peer = {name: rates(of_ways[name]) for name in PEER_GUESSES}
        name = best_way(of_peer, plain)
        new, again = kind.startswith("new"), kind.endswith(AGAIN)
        rows.append(paired_row(f"{kind}, tokens/s; {gain:.2f} times as fast as without guessing", ours, of_peer[name],
                               None if new and not again else 1.1, name))
        others = [of_peer[best_way(of_peer, plain, number)][number] for number in range(len(plain))]
        rows.append(paired_row("– against the way that was best for the other prompts of this line", ours, others, None, "llama-server"))
        if new and not again:
            rows.append(Row("– against no guessing", f"{gain:.3f}", bar="≥ 0.97", met=gain >= 0.97))
            continue
        part = statistics.median(gain / most for gain, most in zip(gains, bounds[kind]))
        what = "earlier answers and its own text" if again else "its own text"
        rows.append(Row(f"– part of what the best copies of {what} could gain ({spread(bounds[kind])} times)", f"{part:.2f}", bar="≥ 0.8",
                        met=part >= 0.8))
        if again:
            first = found[kind.replace(AGAIN, FIRST)][GUESSING]
            same = sum(one.text == other.text for one, other in zip(first, of_ways[GUESSING]))
            rows.append(Row("– answers that were said again to the letter", f"{same} of {len(first)}"))
    return rows


def asked_twice(ways: dict[str, Server], most: int) -> dict[str, dict[str, list[Stream]]]:
    """For each kind, the streams of each way. The ways have turns with each prompt."""
    found: dict[str, dict[str, list[Stream]]] = {}
    for kind, (prompts, n_tokens) in SETS.items():
        for time in (FIRST, AGAIN):
            of_ways = found[f"{kind}, {time}"] = {name: [] for name in ways}
            for prompt in prompts[:most]:
                for name, server in ways.items():
                    with server.turn():
                        of_ways[name].append(require(one_stream(server, greedy(prompt, n_tokens))))
    return found


def bounds_of(kind: str, found: dict[str, dict[str, list[Stream]]], passes: Passes, tokenise: Callable[[str], list[int]]) -> list[float]:
    """What copies could gain at best for each answer; of one that was asked for again, copies of the answer before too."""
    work, _, time = kind.rpartition(", ")
    bounds = []
    for number, (prompt, stream) in enumerate(zip(SETS[work][0], found[kind][GUESSING])):
        before = [*tokenise(found[f"{work}, {FIRST}"][GUESSING][number].text), BETWEEN] if time == AGAIN else []
        bounds.append(gain_of_copies([*before, *tokenise(f"{prompt}\n")], tokenise(stream.text), passes))
    return bounds


def best_way(ways: dict[str, list[float]], plain: list[float], without: int | None = None) -> str:
    """The fastest way by the median of the pairs, of all prompts or without one. The best of several is also the luckiest; what it does with a
    prompt that did not choose it is not."""
    def gain(name: str) -> float:
        pairs = [rate / base for number, (rate, base) in enumerate(zip(ways[name], plain)) if number != without]
        return statistics.median(pairs or [0.0])
    return max(ways, key=gain)


def rates(streams: list[Stream]) -> list[float]:
    return [stream.rate_from_first or 0.0 for stream in streams]


def tokens(server: Server, text: str) -> list[int]:
    return json.loads(server.post("/tokenize", {"content": text}))["tokens"]


def gain_of_copies(prompt: list[int], answer: list[int], passes: Passes) -> float:
    """How many times faster an answer could be at most by drafts of what stands in the text before, behind the token said last: by those that
    make it fastest, chosen by one who knows the answer. The first token comes with the prompt."""
    text, begin = prompt + answer, len(prompt) + 1
    left = [0.0] * (len(text) + 1)
    for at in range(len(text) - 1, begin - 1, -1):
        there = max((matching(text, before + 1, at) for before in range(at - 1) if text[before] == text[at - 1]), default=0)
        left[at] = min(passes.cost(1 + drafted) + left[min(at + 1 + drafted, len(text))] for drafted in range(there + 1))
    return (len(text) - begin) / left[begin] if begin < len(text) else 1.0


def matching(text: list[int], earlier: int, at: int) -> int:
    """How many tokens from `at` on, 31 at most, are those from `earlier` on."""
    most = min(31, len(text) - at, at - earlier)
    return next((n for n in range(most) if text[earlier + n] != text[at + n]), most)


def greedy(prompt: str, n_tokens: int) -> Call:
    return Call("/v1/chat/completions", {
        "messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": prompt}],
        "max_tokens": n_tokens, "temperature": 0, "cache_prompt": False, "stream": True,
        "stream_options": {"include_usage": True}}, "text/event-stream")


def measured_passes(bench) -> Passes:
    """From the engine alone, with a sequence for each row; the best of two, since a slow moment counts as cheap drafts."""
    output = bench.llama_tool("llama-batched-bench", "-npp", "16", "-ntg", "16", "-npl", ",".join(2 * PASSES), "-c", "8192",
                              "--output-format", "jsonl")
    times = defaultdict(list)
    for line in output.splitlines():
        if line.startswith("{"):
            measured = json.loads(line)
            times[measured["pl"]].append(measured["t_tg"])
    return Passes({rows: min(of_rows) / min(times[1]) for rows, of_rows in times.items()})


def growth(bench) -> list[Row]:
    """Requests of all kinds, one after the other and four at a time."""
    with bench.ours_ready() as server:
        held = []
        for count in (100, 900):
            for number in range(count // 4):
                calls = [load.phone_call(f"{number} {bench.prompt()}"[: 40 + 37 * (number % 9)], 8) for _ in range(4)]
                for stream in asyncio.run(load.send_together(server.port(), calls)):
                    require(stream)
            held.append(servers.memory(server.family(), bench.model).total / MIB)
    return [Row("memory of all processes beside the model after 100 requests, MiB", f"{held[0]:.1f}"),
            limit_row("– growth over 900 more, MiB", [held[1] - held[0]], 8)]
