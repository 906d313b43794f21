"""The parts of compare.py about what a request may ask for beside tokens, and about what a server holds."""

import asyncio
import statistics
from pathlib import Path

import load
import reuse
from load import Call, Stream, one_stream, require
from report import Row, paired_row, ratio_row, spread
from servers import Server

MIB = 1 << 20
PLAIN = ["--speculate", "off"]
PROMPT_TOKENS = [30, 500]
FIRST_TURNS = 5  # of each repetition with processes of its own
# As in a room with many people: greedy like nobody, and long enough that the first token does not count.
N_TOKENS = 100
# What costs something for each token. The form lets everything through that is plain text, so that the text is as long.
EXTRAS: dict[str, dict] = {
    "penalised": {"repeat_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1},
    "with 5 log-probabilities": {"logprobs": True, "top_logprobs": 5},
    "in a form": {"grammar": "root ::= [^\\x00]{900}"},
}


def first(bench) -> list[Row]:
    """Time to the first token of one stream, for a short and a long prompt that nobody had before."""
    times: dict[int, tuple[list[float], list[float]]] = {n_tokens: ([], []) for n_tokens in PROMPT_TOKENS}
    for _ in bench.quiet_repetitions():
        with bench.ours_ready(*PLAIN) as server, bench.llama_server_ready() as llama_server:
            sides = [(server, load.phone_call), (llama_server, load.openai_call)]
            for side, _ in sides:
                side.pause()
            for number in range(FIRST_TURNS):
                for n_tokens, found in times.items():
                    prompt = lambda: reuse.text_of(n_tokens, f"{bench.prompt()[:4]}, read this:")
                    for times_of, stream in zip(found, load.answers(sides, number % 2 == 1, prompt, 2)):
                        times_of.append(stream.time_to_first_token)
    return [paired_row(f"one stream, time to the first token after a prompt of about {n_tokens} tokens, s", *found, 1.0,
                       "llama-server", most=True) for n_tokens, found in times.items()]


def extras(bench) -> list[Row]:
    """What penalties, log-probabilities and forms cost, against the same request without them, in turns."""
    def call(more: dict) -> Call:
        body = {"messages": [{"role": "user", "content": bench.prompt()}], "max_tokens": N_TOKENS, "temperature": 0.8, "seed": 7,
                "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, **more}
        return Call("/v1/chat/completions", body, "text/event-stream")
    rates: dict[str, list[float]] = {"plain": [], **{name: [] for name in EXTRAS}}
    with bench.ours_ready(*PLAIN) as server:
        one_stream(server, call(EXTRAS["in a form"]))  # the compiler reads the vocabulary once
        for _ in bench.quiet_repetitions():
            for name in rates:
                rates[name].append(require(one_stream(server, call(EXTRAS.get(name, {})))).rate_from_first)
    return [ratio_row(f"{name}, one stream, tokens/s", rates[name], rates["plain"], 0.9, "the same request without it")
            for name in EXTRAS]


def beside(bench) -> list[Row]:
    """Guessing ahead with eight streams at once: it must not cost anything where there is nothing to guess."""
    rows = []
    with bench.ours_ready() as guessing, bench.ours_ready(*PLAIN) as plain:
        guessing.pause()
        plain.pause()
        for name, prompt in (("new stories", reuse.NEW), ("copies of a text", reuse.SETS["a text is copied"][0][0] + "\n({})")):
            rates: list[list[float]] = [[], []]
            for repetition in bench.quiet_repetitions():
                # Other words each time, so that nothing of it was said before.
                topics = [f"{animal} in year {100 * repetition + year}" for year, animal in enumerate((reuse.ANIMALS * 2)[:8])]
                calls = [reuse.greedy(prompt.format(topic), 128) for topic in topics]
                order = [0, 1] if repetition % 2 == 0 else [1, 0]
                for side in order:
                    with (guessing, plain)[side].turn() as server:
                        rates[side].append(all_of(server, calls))
            rows.append(paired_row(f"{len(calls)} streams at once, {name}, all tokens/s with guessing", rates[0], rates[1], 0.97,
                                   "ours without"))
    return rows


def all_of(server: Server, calls: list[Call]) -> float:
    """All tokens of some streams by the time from the first request to the last answer's end."""
    done: list[Stream] = asyncio.run(load.send_together(server.port(), calls))
    for stream in done:
        require(stream)
    return sum(s.tokens for s in done) / (max(s.ended for s in done) - min(s.started for s in done))


def resident(bench) -> list[Row]:
    """All memory, the mapped model's too, after eight streams, with the same cells and no cache beside them."""
    held = []
    for server_ in (bench.ours_ready("--cache-mib", "0", "--ctx-size", str(8 * 1024)), bench.llama_server_ready("--cache-ram", "0")):
        with server_ as server:
            calls = [load.openai_call(bench.prompt(), 64) for _ in range(8)]
            for _ in range(2):
                all_of(server, calls)
            held.append(sum(pss(pid) for pid in server.family()) / MIB)
    ratio = held[0] / held[1]
    return [Row("memory of all processes with the mapped model after eight streams, no cache beside the cells, MiB",
                f"{held[0]:.0f}, ratio {ratio:.3f}", f"{held[1]:.0f} (llama-server --cache-ram 0)", "ratio ≤ 1.0", ratio <= 1.0)]


def pss(pid: int) -> int:
    """Bytes in memory; what processes share is divided between them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def partner(bench) -> list[Row]:
    """A second model that drafts: with and without it, in turns, and llama-server with the same pair."""
    if bench.draft is None:
        return [Row("a second model drafts", "not measured: give --draft FILE")]
    prompts = ["Write a Python class for {}, with docstrings.", "Explain how to write a parser for {} in Rust."]
    topics = ["a bank account", "a queue of jobs", "a cache with a limit", "a calendar", "a chess board", "a small shell"]
    texts = [prompt.format(topic) for topic in topics for prompt in prompts][: 2 * bench.repetitions]
    draft = ["--draft-model", str(bench.draft)]
    rates: dict[str, list[float]] = {}
    variants = {"ours without": PLAIN, "ours, text only": [], "ours with it": draft, "ours with it always": [*draft, "--speculate", "always"]}
    counted = {}
    for name, flags in variants.items():
        with bench.ours_ready(*flags, n_streams=1) as server:
            rates[name] = [require(one_stream(server, reuse.greedy(text, 128))).rate_from_first for text in texts]
            counted[name] = [server.metric(f"pocket_llm_draft_tokens{kept}_total") for kept in ("", "_kept")]
    peer = {"llama-server without": [], "llama-server with it": ["-md", str(bench.draft), "--spec-type", "draft-simple"]}
    for name, flags in peer.items():
        with bench.llama_server_ready(*flags, n_streams=1) as server:
            rates[name] = [require(one_stream(server, reuse.greedy(text, 128))).rate_from_first for text in texts]
    gain = statistics.median(rates["ours with it"]) / statistics.median(rates["ours without"])
    rows = [Row(f"one stream, new code and explanations, tokens/s: {name}", spread(values),
                f"{counted[name][1]:.0f} of {counted[name][0]:.0f} guesses were right" if name in counted else "–")
            for name, values in rates.items()]
    return [*rows, Row("– with the second model against no guessing", f"{gain:.3f}", bar="≥ 0.97", met=gain >= 0.97)]
