"""Virtual environments of pinned Python packages, kept in the cache outside the clone."""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

CACHE = Path(os.environ.get("POCKET_LLM_CACHE")
             or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocket-llm")


def venv(name: str, pins: Path) -> Path:
    """The folder of the environment with the packages of `pins` (pip's requirements), made when it is not there. Its name follows
    from the pins, so another set is another environment."""
    folder = CACHE / "tools" / f"{name}-{hashlib.sha256(pins.read_bytes()).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            subprocess.run([folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:",
                            "--requirement", pins], check=True)
            (folder / "complete").touch()
    return folder


def enter(name: str, pins: Path) -> None:
    """Goes on in that environment, if this is not it."""
    python = venv(name, pins) / "bin/python"
    if Path(sys.prefix) != python.parent.parent:
        os.execv(python, [str(python), *sys.argv])
