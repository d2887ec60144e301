"""A measured program for tests: what `fastvlm.bench.contestant` expects of one, without a model."""

import os
from typing import Any

from fastvlm.bench.work import Work


class Program:
    def __init__(self, work: Work):
        self.work = work
        self.facts = {"threads": os.environ["OMP_NUM_THREADS"], "prompt_tokens": work.prompt_tokens}
        self.count = 0

    def run(self) -> dict[str, Any]:
        self.count += 1
        print("noise on standard output")
        os.write(1, b"noise from a native library\n")
        return {"count": self.count}

    def at(self, side: str) -> dict[str, Any]:
        return {"side": int(side)}

    def wrong(self) -> dict[str, Any]:
        self.work.check(prompt_tokens=7)
        return {}

    def die(self) -> dict[str, Any]:
        os.write(2, b"last words\n")
        os._exit(3)


def load(work: Work, variant: str) -> Program:
    if variant == "broken":
        raise ValueError("no such variant")
    return Program(work)
