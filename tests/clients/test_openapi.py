"""schemathesis against the real server: what `/openapi.json` says is what is served, and no request makes it fail.

The model is a tiny one of random weights, because most requests that fit the document are answered.
"""

import os
import subprocess
import sys
import unittest
from pathlib import Path

import httpx2 as httpx

from server import Server

# Both kinds of data are generated: what fits the document must be taken, what does not must be refused with a status in it.
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection,unsupported_method"


class Document(unittest.TestCase):
    def test_it_is_true(self):
        server = Server("--ctx-size", "1024", "--parallel", "4", model=os.environ["TINY"])
        try:
            done = subprocess.run(
                [Path(sys.prefix) / "bin/schemathesis", "--config-file", Path(__file__).with_name("schemathesis.toml"), "run", server.url + "/openapi.json", "--checks", CHECKS, "--seed", "8005",
                 "--max-examples", os.environ.get("EXAMPLES", "3"), "--phases", "examples,coverage,fuzzing", "--request-timeout", "60",
                 "--exclude-deprecated", "--generation-database", "none", "--no-color", "--workers", "1"],
                capture_output=True, text=True, timeout=1200)
            self.assertEqual(done.returncode, 0, done.stdout[-20_000:] + done.stderr[-5_000:])
            self.assertEqual(httpx.get(server.url + "/health", timeout=30).status_code, 200)
        finally:
            server.stop()
