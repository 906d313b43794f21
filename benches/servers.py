"""Starts the servers that compare.py measures, watches them from outside, and ends them.

Only what was started here is ended, each process by its own id. Everything is read from /proc and from the server's own
pages, so nothing in a server knows that it is being measured. Linux only.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

READY_SECONDS = 60
STOP_SECONDS = 15
SETTLE_SECONDS = 0.05  # for what a server does after an answer
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Server:
    """A server process from `with` to the end of the block."""

    def __init__(self, command: list[str], log: Path, port: int | None = None) -> None:
        """Without a port the server is asked for port 0 and its log says which it got."""
        self.command, self.log, self._port = command, log, port

    def __enter__(self) -> "Server":
        self.exec_time = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()
        family = self.family()
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in family[1:]:  # ours end by themselves; what does not is ended here
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)

    def pause(self) -> None:
        """Stops all its processes, so that others have the machine: a server that waits is not free."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        if self.process.poll() is not None:
            return  # its id may be another's by now
        for pid in self.family():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # gone meanwhile

    @contextmanager
    def turn(self) -> Iterator["Server"]:
        """Goes on until the end of the block."""
        self.resume()
        time.sleep(SETTLE_SECONDS)
        try:
            yield self
        finally:
            time.sleep(SETTLE_SECONDS)
            self.pause()

    def port(self, pause: float = 0.001) -> int:
        """Waits until the server listens."""
        deadline = time.monotonic() + READY_SECONDS
        while self._port is None:
            self.check_alive(deadline)
            if found := re.search(rb"listening on http://127\.0\.0\.1:(\d+)", self.log.read_bytes()):
                self._port = int(found[1])
            else:
                time.sleep(pause)
        return self._port

    def wait_until_ready(self, path: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            self.check_alive(deadline)
            try:
                self.get(path)
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.02)

    def check_alive(self, deadline: float) -> None:
        if self.process.poll() is not None or time.monotonic() > deadline:
            last = b"\n".join(self.log.read_bytes().splitlines()[-5:]).decode(errors="replace")
            how = f"exited with {self.process.returncode}" if self.process.returncode is not None else "is not ready"
            raise RuntimeError(f"{Path(self.command[0]).name} {how}: {last}")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port()}{path}", timeout=10) as answer:
            return answer.read().decode()

    def post(self, path: str, body: dict) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port()}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        """The sum of a counter over its labels."""
        return sum_of_metric(self.get("/metrics"), name)

    def buffers(self) -> dict[str, int]:
        """What llama.cpp allocated, by the server's own account."""
        details = (json.loads(self.get("/status")).get("ai") or {}).get("currentModelDetails") or {}
        return {buffer["name"]: buffer["bytes"] for buffer in details.get("buffers") or []}

    def family(self) -> list[int]:
        """The process and its descendants."""
        pids = [self.process.pid]
        for pid in pids:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    pids += map(int, children.read_text().split())
                except OSError:
                    pass  # gone meanwhile
        return pids

    def worker(self) -> int:
        """The process that computes: the child whose subcommand is `engine`."""
        for pid in self.family()[1:]:
            if b"engine" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        raise RuntimeError("the server has no worker process")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def sum_of_metric(page: str, name: str) -> float:
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)", page, re.MULTILINE)
    if not values:
        raise RuntimeError(f"/metrics has no {name}")
    return sum(map(float, values))


def cpu_seconds(pids: list[int]) -> float:
    """User and system time."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SECOND


def busy_cores(seconds: float) -> float:
    """How many cores compute now, for whomever."""
    def busy() -> int:
        fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]))
        return sum(fields[:3]) + sum(fields[5:8])
    before = busy()
    time.sleep(seconds)
    return (busy() - before) / TICKS_PER_SECOND / seconds


@dataclass
class Memory:
    """Bytes that some processes hold."""
    anonymous: int = 0  # heap, stacks, buffers
    files: int = 0  # code and mapped files other than the model; what several share counts once

    @property
    def total(self) -> int:
        return self.anonymous + self.files


def memory(pids: list[int], model: Path) -> Memory:
    """From smaps: Pss splits pages that our processes share between them."""
    held = Memory()
    for pid in pids:
        add_smaps(held, Path(f"/proc/{pid}/smaps").read_text(), model.name)
    return held


def add_smaps(held: Memory, smaps: str, model_name: str) -> None:
    of_the_model = False
    pss = 0
    for line in smaps.splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            of_the_model = line.endswith(model_name)
        elif key == "Pss:":
            pss = int(rest[0]) * 1024
        elif key == "Anonymous:" and not of_the_model:
            anonymous = int(rest[0]) * 1024
            held.anonymous += anonymous
            held.files += max(0, pss - anonymous)
