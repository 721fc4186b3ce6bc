"""The processes that `benchmarks.train_step` measures: one for each contender, in the same environment."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.environment import CORES, ROOT
from benchmarks.train_step.networks import CHARACTERS, CLASSES, LENGTH, WIDTH
from dfpjax.kernels.memory import SETTINGS

ALLOCATORS = {"tuned": SETTINGS, "default": {}}
"""Environment variables of each setting, which replace those of the environment."""


def without_folders(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables as results record them: a library by its file name."""
    return {name: Path(value).name for name, value in variables.items()}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A framework and its precision."""

    framework: str
    precision: str
    compiled: bool = False
    """Whether torch.compile compiles it."""

    frozen: bool = False
    """Whether `dfpjax.freeze` brought its weights to DFP16 before the first step: in inference alone."""

    @property
    def name(self) -> str:
        words = [{"jax": "JAX", "torch": "PyTorch"}[self.framework], self.precision]
        words += ["compiled"] * self.compiled + ["frozen"] * self.frozen
        return " ".join(words)


CONTENDERS = {
    "jax-float32": Contender(framework="jax", precision="float32"),
    "jax-dfp16": Contender(framework="jax", precision="dfp16"),
    "jax-dfp16-frozen": Contender(framework="jax", precision="dfp16", frozen=True),
    "jax-dfp16-direct": Contender(framework="jax", precision="dfp16_direct"),
    "jax-bfloat16": Contender(framework="jax", precision="bfloat16"),
    "torch-float32": Contender(framework="torch", precision="float32"),
    "torch-bfloat16": Contender(framework="torch", precision="bfloat16"),
    "torch-float32-compiled": Contender(framework="torch", precision="float32", compiled=True),
    "torch-bfloat16-compiled": Contender(framework="torch", precision="bfloat16", compiled=True),
}
"""By their names on the command line. `benchmarks.common.bfloat16` says what JAX's bfloat16 computes."""

USUAL = tuple(name for name in CONTENDERS if name != "jax-dfp16-direct")


class Worker:
    """A process that prepares one contender's step and takes it when told to."""

    def __init__(
        self, contender: Contender, wanted: dict, *, allocator: Mapping[str, str], torch_python: str
    ):
        self._name = contender.name
        environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        environment |= allocator
        if contender.framework == "torch":
            command = [torch_python, "-m", "benchmarks.train_step.torch_worker"]
            # Each OpenMP thread on a core of its own, as oneDNN recommends.
            environment["OMP_PROC_BIND"] = "true"
        else:
            command = [sys.executable, "-m", "benchmarks.train_step.jax_worker"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)
        sizes = {"classes": CLASSES, "characters": CHARACTERS, "width": WIDTH, "length": LENGTH}
        self.facts = self.ask(
            **wanted,
            **sizes,
            precision=contender.precision,
            compile=contender.compiled,
            frozen=contender.frozen,
            threads=CORES,
        )

    def ask(self, **request):
        """The answer to a request, as `service` describes them.

        Raises:
            RuntimeError: the process ended instead.
        """
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            why = "the system killed it: out of memory?" if code == -9 else "its message stands above"
            raise RuntimeError(f"the process of {self._name} ended with code {code}; {why}")
        return json.loads(answer)

    def steps(self, count: int) -> dict:
        """So many steps after one that does not count: see `service`."""
        return self.ask(do="steps", count=count)

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


@contextmanager
def start(
    names: list[str], wanted: dict, *, allocator: str, torch_python: str
) -> Iterator[dict[str, Worker]]:
    """The worker of each contender, ready; they end with the context.

    Arguments:
        names: of `CONTENDERS`.
        wanted: `network`, `batch` and `mode`.
        allocator: of `ALLOCATORS`.
        torch_python: an interpreter that has PyTorch.

    Raises:
        RuntimeError: a process ended, or the networks have different numbers of parameters.
    """
    with ExitStack() as stack:
        workers = {}
        for name in names:
            settings = {"allocator": ALLOCATORS[allocator], "torch_python": torch_python}
            workers[name] = Worker(CONTENDERS[name], wanted, **settings)
            stack.callback(workers[name].close)
        parameters = {name: worker.facts["parameters"] for name, worker in workers.items()}
        if len(set(parameters.values())) > 1:
            raise RuntimeError(f"the contenders' networks differ in the number of parameters: {parameters}")
        yield workers
