"""Tests of the measuring scripts: `make test` runs them. A wrong number is worse than none."""

import argparse
import asyncio
import sys
import tempfile
import time
import unittest
from pathlib import Path

import compare
import report
import load
import reuse
import servers


def stream_of(*arrivals: tuple[float, bytes]) -> load.Stream:
    stream = load.Stream(started=0.0, arrivals=list(arrivals))
    load.parse(stream)
    return stream


NDJSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class ReadingStreams(unittest.TestCase):
    def test_ndjson_tokens_are_timed_by_their_last_byte(self):
        first = chunk(b'{"type":"token","token":"a"}\n')
        second = chunk(b'{"type":"token","token":" b"}\n')
        last = chunk(b'{"type":"complete","fullText":"a b","timings":{"predicted_n":2,"predicted_per_second":9.5,'
                     b'"prompt_n":3,"cache_n":4}}\n')
        stream = stream_of((1.0, NDJSON + first + second[:9]), (2.0, second[9:] + last), (3.0, b"0\r\n\r\n"))
        self.assertEqual(stream.token_times, [1.0, 2.0])
        self.assertEqual((stream.text, stream.tokens, stream.prompt_tokens), ("a b", 2, 7))
        self.assertEqual((stream.rate, stream.server_rate, stream.time_to_first_token), (1.0, 9.5, 1.0))
        self.assertIsNone(stream.problem())

    def test_a_line_may_span_chunks_and_a_chunk_may_hold_several(self):
        body = chunk(b'{"type":"token",') + chunk(b'"token":"a"}\n{"type":"token","token":"b"}\n\n')
        stream = stream_of((1.0, NDJSON + body + b"0\r\n\r\n"))
        self.assertEqual(stream.text, "ab")
        self.assertEqual(stream.problem(), "the stream ended without a last event")

    def test_an_error_event_is_the_problem(self):
        stream = stream_of((1.0, NDJSON + chunk(b'{"type":"error","error":"engine died"}\n') + b"0\r\n\r\n"))
        self.assertEqual((stream.errors, stream.problem()), (["engine died"], "engine died"))

    def test_what_was_not_seen_is_not_timed(self):
        last = (b'{"type":"complete","fullText":"","timings":{"predicted_n":%d,"predicted_per_second":9.5,"prompt_n":3,"cache_n":0}}\n')
        token = chunk(b'{"type":"token","token":"a"}\n')
        timed = {(seen, said): stream_of((1.0, NDJSON), *[(2.0 + n, token) for n in range(seen)], (9.0, chunk(last % said) + b"0\r\n\r\n")).is_timed
                 for seen, said in ((0, 0), (0, 64), (1, 1), (1, 64), (2, 64))}
        self.assertEqual(timed, {(0, 0): False, (0, 64): False, (1, 1): True, (1, 64): False, (2, 64): True})

    def test_server_sent_events_of_llama_server(self):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        body = (b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n'
                b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
                b'data: {"choices":[{"finish_reason":"length","delta":{}}]}\n\n'
                b'data: {"choices":[],"usage":{"completion_tokens":1,"prompt_tokens":31}}\n\ndata: [DONE]\n\n')
        stream = stream_of((1.0, head + body))
        self.assertEqual((stream.text, stream.tokens, stream.prompt_tokens), ("Hi", 1, 31))
        self.assertIsNone(stream.problem())

    def test_a_refusal_and_a_cut_connection_are_problems(self):
        self.assertEqual(stream_of((1.0, b"HTTP/1.1 503 Busy\r\n\r\n{}")).problem(), "HTTP 503")
        self.assertEqual(stream_of((1.0, b"HTTP/1.1 200")).problem(), "HTTP 0")

    def test_nobody_listening_is_told_in_the_stream(self):
        stream = asyncio.run(load.send(servers.free_port(), load.phone_call("x", 1)))
        self.assertIn("ConnectionRefusedError", stream.problem())

    def test_only_this_machine_is_loaded(self):
        self.assertEqual(load.loopback_port("http://localhost:8005"), 8005)
        with self.assertRaises(SystemExit):
            load.loopback_port("http://192.0.2.1:8005")


class ReadingServers(unittest.TestCase):
    def test_a_metric_is_summed_over_its_labels(self):
        page = ("# HELP requests_total Requests\nrequests_total{code=\"200\"} 3\nrequests_total{code=\"500\"} 1e0\n"
                "requests_total_more 9\n")
        self.assertEqual(servers.sum_of_metric(page, "requests_total"), 4.0)
        with self.assertRaises(RuntimeError):
            servers.sum_of_metric(page, "nothing_total")

    def test_memory_leaves_the_mapped_model_out(self):
        smaps = ("55d0-55d1 r-xp 00000000 fe:00 12 /usr/bin/pocket-llm\nRss: 8 kB\nPss: 4 kB\nAnonymous: 0 kB\n"
                 "7f00-7f10 rw-p 00000000 00:00 0 [heap]\nRss: 16 kB\nPss: 16 kB\nAnonymous: 16 kB\n"
                 "7f20-7f30 r--s 00000000 fe:00 13 /models/m.gguf\nRss: 900 kB\nPss: 900 kB\nAnonymous: 0 kB\n")
        held = servers.Memory()
        servers.add_smaps(held, smaps, "m.gguf")
        self.assertEqual((held.anonymous, held.files), (16 * 1024, 4 * 1024))


    def test_a_server_that_is_stopped_does_nothing_and_goes_on_in_its_turn(self):
        with tempfile.TemporaryDirectory() as folder:
            counter = "import itertools\nfor n in itertools.count():\n    print(n, flush=True)"
            log = Path(folder) / "log"
            with servers.Server([sys.executable, "-c", counter], log) as server:
                server.pause()
                before = log.stat().st_size
                time.sleep(0.05)
                self.assertEqual(log.stat().st_size, before)
                with server.turn():
                    pass
                self.assertGreater(log.stat().st_size, before)
            self.assertIsNotNone(server.process.returncode)

    def test_a_server_that_is_gone_is_not_signalled(self):
        with tempfile.TemporaryDirectory() as folder:
            with servers.Server([sys.executable, "-c", ""], Path(folder) / "log") as server:
                server.process.wait()
                server.pause()


class Ballast(unittest.TestCase):
    def test_it_follows_the_model_unless_somebody_said_so(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(bytes(5000))
            file.flush()
            self.assertEqual(len(compare.ballast(Path(file.name), None)), compare.BALLAST_MODELS * 5000)
            self.assertEqual(len(compare.ballast(Path(file.name), 2)), 2 << 20)
            self.assertIsNone(compare.ballast(Path(file.name), 0))


class Copies(unittest.TestCase):
    passes = reuse.Passes({1: 1.0, 32: 16.0})

    def test_what_begins_alike_is_needed_once(self):
        self.assertEqual(reuse.least_tokens([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3]]), 2 + 1 + 2 + 1)
        self.assertEqual(reuse.least_tokens([[1, 2], [1, 2]]), 2)

    def test_what_was_not_said_before_gains_nothing(self):
        self.assertEqual(reuse.gain_of_copies([1, 2, 3], [4, 5, 6], self.passes), 1.0)
        self.assertEqual(reuse.gain_of_copies([1, 2, 3], [], self.passes), 1.0)

    def test_a_copy_is_one_pass_behind_its_first_token(self):
        copy = [1, *range(10, 20)]
        # The first token comes with the prompt; one pass has the other ten, nine of them as drafts.
        self.assertAlmostEqual(reuse.gain_of_copies([*copy, 2], copy, self.passes), 10 / (1 + 9 * 15 / 31), places=6)

    def test_what_does_not_pay_is_not_drafted(self):
        dear = reuse.Passes({1: 1.0, 2: 2.5, 32: 100.0})
        copy = [1, *range(10, 20)]
        self.assertEqual(reuse.gain_of_copies([*copy, 2], copy, dear), 1.0)
        # Two passes of two rows, or three and one: four are dear.
        steep = reuse.Passes({1: 1.0, 3: 1.5, 4: 9.0, 32: 100.0})
        self.assertAlmostEqual(reuse.gain_of_copies([1, 2, 3, 4, 5, 9], [1, 2, 3, 4, 5], steep), 4 / 2.5, places=6)

    def test_costs_lie_between_those_that_were_measured(self):
        self.assertAlmostEqual(reuse.Passes({1: 1.0, 4: 2.5, 32: 9.0}).cost(2), 1.5)
        self.assertAlmostEqual(reuse.Passes({1: 1.0, 4: 2.5, 32: 8.0}).row, 0.25)

    def test_the_best_way_may_be_chosen_without_a_prompt(self):
        plain = [10.0, 10.0, 10.0]
        ways = {"steady": [12.0, 12.0, 12.0], "lucky": [13.0, 30.0, 9.0]}
        self.assertEqual(reuse.best_way(ways, plain), "lucky")
        self.assertEqual(reuse.best_way(ways, plain, 1), "steady")
        self.assertEqual(reuse.best_way(ways, [10.0], 0), "steady")

    def test_a_match_ends_where_the_text_differs_or_begins(self):
        self.assertEqual(reuse.matching([1, 2, 3, 9, 1, 2, 4], 0, 4), 2)
        self.assertEqual(reuse.matching([1, 1, 1, 1], 2, 3), 1)
        self.assertEqual(reuse.matching(list(range(40)) * 2, 0, 40), 31)


class Reporting(unittest.TestCase):
    def test_bars(self):
        self.assertTrue(report.ratio_row("f", [95.0], [100.0], 0.95, "p").met)
        self.assertFalse(report.ratio_row("f", [94.9], [100.0], 0.95, "p").met)
        self.assertFalse(report.limit_row("f", [1.0, 3.0, 0.5], 1.0).met)
        self.assertIsNone(report.limit_row("f", [1.0], None).met)

    def test_pairs_are_compared_before_the_median_is_taken(self):
        row = report.paired_row("f", [10.0, 55.0, 100.0], [10.0, 50.0, 80.0], 1.1, "p")
        self.assertTrue(row.met)
        self.assertIn("ratio 1.100 (1.05 to 1.18 in the middle half of 3 pairs)", row.ours)
        self.assertFalse(report.paired_row("f", [1.2], [1.0], 1.1, "p", most=True).met)
        with self.assertRaises(ValueError):
            report.paired_row("f", [1.0, 2.0], [1.0], 1.0, "p")

    def test_table(self):
        row = report.limit_row("start, s", [0.5, 0.25, 2.0], 1.0)
        self.assertEqual(report.table([row]).splitlines()[-1], "| start, s | 0.50 (0.25 to 2.00) | – | < 1 | yes |")

    def test_unknown_parts_are_refused(self):
        self.assertEqual(compare.parts("kill,idle"), ["kill", "idle"])
        with self.assertRaises(argparse.ArgumentTypeError):
            compare.parts("kill,sleep")


if __name__ == "__main__":
    unittest.main()
