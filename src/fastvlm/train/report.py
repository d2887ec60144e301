"""What a run tells: a progress bar, metrics.jsonl, TensorBoard, and a plot of the loss at the end."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Report:
    """Of one stage, by the main process.

    Args:
        folder: takes metrics.jsonl, loss.png and, with `tensorboard`, event files.
        first_step: where the run goes on; rows after it are of steps that a kill undid, and are dropped.
        steps, batch_size: of the stage.
    """

    def __init__(self, folder: Path, name: str, first_step: int, steps: int, batch_size: int, *, log_every: int = 20, quiet: bool = False):
        self.folder, self.name, self.batch_size, self.steps, self.log_every = folder, name, batch_size, steps, log_every
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            rows = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= first_step]
            self.path.write_text("".join(f"{row}\n" for row in rows))
        self.file = self.path.open("a")
        interval_s = 1 if sys.stderr.isatty() else 60  # a log file is read later
        self.bar = tqdm(
            desc=name, total=steps * batch_size, initial=first_step * batch_size, unit="sample", disable=quiet, mininterval=interval_s
        )
        self.sums: dict[str, list[float]] = {}
        self.last, self.logged, self.since = first_step, first_step, time.monotonic()
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board: Any = SummaryWriter(folder / "tensorboard")
        except ImportError:
            self.board = None

    def step(self, step: int, scale: float, values: dict[str, tuple[float, float]]) -> None:
        """After batch `step` (from 1): metric -> (sum, count), averaged over `log_every` steps."""
        for name, (total, count) in values.items():
            sums = self.sums.setdefault(name, [0.0, 0.0])
            sums[0] += total
            sums[1] += count
        self.bar.update((step - self.last) * self.batch_size)
        is_due = self.last // self.log_every < step // self.log_every or step == self.steps
        self.last = step
        if not is_due:
            return
        row: dict[str, float] = {"step": step, "samples": step * self.batch_size}
        row |= {name: total / max(count, 1e-9) for name, (total, count) in self.sums.items()}
        row |= {"learning_rate_scale": scale, "samples_per_s": (step - self.logged) * self.batch_size / (time.monotonic() - self.since)}
        self.bar.set_postfix({name: f"{row[name]:.3g}" for name in self.sums})
        self.write(row)
        self.sums, self.logged, self.since = {}, step, time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps({name: round(value, 6) for name, value in row.items()}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(f"{self.name}/{name}", value, row["step"])

    def close(self) -> None:
        self.bar.close()
        self.file.close()
        if self.board is not None:
            self.board.close()
        plot_loss(self.path, self.folder / "loss.png", self.name)


def plot_loss(metrics: Path, picture: Path, title: str) -> None:
    """The loss over samples, from metrics.jsonl; nothing where matplotlib is not installed or there is nothing to draw."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in map(json.loads, metrics.read_text().splitlines()) if "loss" in row]
    if not rows:
        return
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot([row["samples"] for row in rows], [row["loss"] for row in rows])
    axes.set(title=title, xlabel="samples", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
