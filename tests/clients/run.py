#!/usr/bin/env python3
"""Run the official OpenAI client, unmodified, and an API fuzzer against the real server with a real model.

    tests/clients/run.py --server target/release/pocket-llm --model SmolLM2.gguf --tiny tiny.gguf [unittest's arguments]

The packages are pinned in pins.txt and live in an environment of their own in the cache.
"""

import argparse
import os
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "tools"))

import pinned

pinned.enter("clients", HERE / "pins.txt")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--server", required=True, help="the program")
parser.add_argument("--model", required=True, help="a GGUF file that answers sensibly")
parser.add_argument("--tiny", required=True, help="one that answers fast")
known, rest = parser.parse_known_args()
os.environ.update(SERVER=str(Path(known.server).resolve()), MODEL=known.model, TINY=known.tiny)
sys.path.insert(0, str(HERE))
if not any(argument.startswith("test_") for argument in rest):
    rest = ["discover", "--start-directory", str(HERE), *rest]
unittest.main(module=None, argv=["tests/clients/run.py", *rest])
