"""A PyTorch process that answers requests, one JSON object a line."""

import json
import os
import subprocess

from benchmarks.common.environment import ROOT


class TorchProcess:
    """One that runs a module of this repository.

    Arguments:
        python: an interpreter that has PyTorch.
        module: writes a first answer, `greeting`, and then one for each request.
    """

    def __init__(self, python: str, module: str):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # Each OpenMP thread on a core of its own: two on one, which a scheduler may leave there for seconds,
        # would halve its speed.
        environment = {**os.environ, "OMP_PROC_BIND": "true"}
        self._process = subprocess.Popen([python, "-m", module], env=environment, cwd=ROOT, **pipes)
        self.greeting = self._read()

    def _read(self) -> dict:
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the PyTorch process ended; its message stands above")
        return json.loads(answer)

    def ask(self, **request) -> dict:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def has_torch(python: str) -> bool:
    """Whether that interpreter has PyTorch."""
    return not subprocess.run([python, "-c", "import torch"], capture_output=True).returncode
