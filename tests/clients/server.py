"""A real server for the tests of this folder: started on a free port, ended by its process id."""

import os
import re
import signal
import subprocess


class Server:
    """`pocket-llm serve MODEL ARGS…`; `url` is where it answers."""

    def __init__(self, *args: str, model: str | None = None):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("POCKET_LLM_", "OPENAI_"))}
        command = [os.environ["SERVER"], "serve", model or os.environ["MODEL"], "--port", "0", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            self.process.kill()
            raise RuntimeError(f"the server said {line!r} instead of its address")
        self.url = found.group()

    def stop(self) -> int:
        """Asks it to drain, and returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.process.stdout.close()
