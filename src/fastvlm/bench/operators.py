"""Where the time goes: seconds of every kind of operator in the encoder, the prefill and one decoding step. OpenVINO runtime only.

measure(work)["encode"][0]      # {"operator": "Convolution", "computed": "brgconv_avx512_core_vnni_i8", "count": 84, "seconds": 0.21}
"""

from collections import defaultdict
from typing import Any

from fastvlm.bench.contestant import Contestant
from fastvlm.bench.work import Work

RUNS = 5
SHOWN = 10  # kinds of a part; the rest is summed up

Times = list[tuple[str, str, float]]  # operator, how it was computed, seconds


class LastRun:
    """The times of a graph's last run, from the means over all its runs that OpenVINO gives."""

    def __init__(self) -> None:
        self._runs = 0
        self._sums: list[float] = []

    def __call__(self, means: Times) -> Times:
        """To be called after every run, from the first on."""
        self._runs += 1
        before = self._sums or [0.0] * len(means)
        self._sums = [self._runs * seconds for *_, seconds in means]
        return [(name, computed, now - then) for (name, computed, _), now, then in zip(means, self._sums, before, strict=True)]


class Program:
    """A measured program (see `fastvlm.bench.contestant`) that times its operators, which costs a few percent."""

    def __init__(self, work: Work):
        from fastvlm.vlm import load

        options = {**work.load_options, "runtime": "openvino", "profile": True}
        self.runtime: Any = load(work.model, **options).runtime
        self.work = work
        self.pixel_values = work.pixel_values()
        self.facts: dict[str, Any] = {}
        self.last_picture, self.last_step = LastRun(), LastRun()

    def run(self) -> dict[str, Any]:
        features = self.runtime.encode_images(self.pixel_values)
        encode = self.last_picture(self.runtime.operator_times())
        logits, cache = self.runtime.prefill([self.work.input_ids], [features.reshape(-1, features.shape[-1])])
        prefill = self.last_step(self.runtime.operator_times(cache))
        self.runtime.decode(logits.argmax(-1), cache)
        return {"encode": encode, "prefill": prefill, "decode": self.last_step(self.runtime.operator_times(cache))}


def load(work: Work, variant: str) -> Program:
    return Program(work)


def measure(work: Work, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """For each part a list of {"operator", "computed", "count", "seconds"}, the slowest first: medians of `RUNS`."""
    with Contestant("fastvlm.bench.operators", "default", work, environment) as program:
        program.run()
        runs = [program.run() for _ in range(RUNS)]
    return {part: summed([run[part] for run in runs]) for part in ("encode", "prefill", "decode")}


def summed(runs: list[Times]) -> list[dict[str, Any]]:
    """Operators of one kind, computed in one way, together; each of the run whose sum is the median."""
    middle = sorted(runs, key=lambda run: sum(seconds for *_, seconds in run))[len(runs) // 2]
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for operator, computed, seconds in middle:
        groups[operator, computed].append(seconds)
    rows = [
        {"operator": operator, "computed": computed, "count": len(times), "seconds": sum(times)}
        for (operator, computed), times in groups.items()
        if sum(times) > 0  # constants, and what was fused into another operator
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def rows(parts: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lines of a table: part, operator, implementation, count, milliseconds, share of the part."""
    lines: list[tuple[str, ...]] = []
    for part, found in parts.items():
        total = sum(row["seconds"] for row in found)
        shown, rest = found[:SHOWN], found[SHOWN:]
        if rest:
            count, seconds = sum(row["count"] for row in rest), sum(row["seconds"] for row in rest)
            shown = [*shown, {"operator": "others", "computed": "", "count": count, "seconds": seconds}]
        for row in shown:
            name = f"{part}: {row['operator']} {row['computed']}".rstrip()
            lines.append((name, str(row["count"]), f"{1000 * row['seconds']:.2f}", f"{100 * row['seconds'] / total:.1f} %"))
    return lines
