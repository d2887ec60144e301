"""One measured program in a process of its own, which runs when it is told to.

    with Contestant("fastvlm.bench.ours", "default", work) as ours, Contestant("fastvlm.bench.peers.llama_cpp", "q8_0", work) as peer:
        ours.run(), peer.run(), peer.run(), ours.run()

A program's file defines `load(work, variant) -> program`; the program has `facts` (a dict) and `run() -> dict`, and may have other such
methods. Several programs stay loaded and take turns, so that what else the machine does falls on all of them alike. Everything is JSON,
one line a message.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, Any

from fastvlm.bench.work import Work
from fastvlm.checkpoint.memory import peak_memory_bytes


class ContestantError(RuntimeError):
    """A program could not be loaded or failed; its own words."""


class Contestant:
    """The parent's side. `load_s` is the time from starting the process until it was ready; `facts` is what the program said of itself."""

    def __init__(self, module: str, variant: str, work: Work, environment: dict[str, str] | None = None):
        self.variant = variant
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastvlm.bench.contestant", module, variant, str(work.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "OMP_NUM_THREADS": str(work.threads), "PYTHONUNBUFFERED": "1", **(environment or {})},
        )
        try:
            self.facts = self._read()
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - start

    def run(self, method: str = "run") -> dict[str, Any]:
        """One measured answer, or what another of the program's methods returns; its arguments may follow the name."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: reading says why
            self._process.stdin.write(method.encode() + b"\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise ContestantError(f"ended with status {status}" + (f": {last[0]}" if last else ""))
        message = json.loads(line)
        if "error" in message:
            raise ContestantError(message["error"])
        return message

    def close(self) -> None:
        """Ask it to leave; a program that does not within ten seconds is ended."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def main(module: str, variant: str, folder: str) -> int:
    """The child's side: load, say `facts`, then call the method that each line of standard input names."""
    # Native libraries print to standard output: the messages get a descriptor of their own.
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from fastvlm import telemetry

    telemetry.disable()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing that is measured is fetched
    try:
        program = importlib.import_module(module).load(Work.read(Path(folder)), variant)
        _say(messages, {**program.facts, "peak_memory_bytes": peak_memory_bytes()})
        for line in sys.stdin:
            method, *arguments = line.split()
            _say(messages, {**getattr(program, method)(*arguments), "peak_memory_bytes": peak_memory_bytes()})
    except Exception as error:
        traceback.print_exc()
        _say(messages, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})
        return 1
    return 0


def _say(messages: IO[str], message: dict[str, Any]) -> None:
    messages.write(json.dumps(message) + "\n")
    messages.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
