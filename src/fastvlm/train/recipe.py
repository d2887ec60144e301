"""A training run as data: which parts learn, from what, how fast. Read from YAML; unknown fields are refused.

recipe = load_recipe("recipes/nano/characters.yaml")
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastvlm.prompts import BUILT_IN

PARTS = ("vision_tower", "multi_modal_projector", "language_model")
SCHEDULES = ("constant", "cosine", "linear")
_TUPLES = ("betas", "frozen", "parts", "targets")


class RecipeError(ValueError):
    """A recipe that cannot be run; names the file, the field and what is allowed."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685) in place of weights: what a stage learns in these parts."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    parts: tuple[str, ...] = ("language_model",)
    targets: tuple[str, ...] | None = None  # ends of module names, such as q_proj; None: every linear layer and 1x1 convolution
    keep: float = 1.0  # of the change, in the end: the way back returns what was forgotten before what was learnt (arXiv 2109.01903)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.parts) - set(PARTS)):
            raise RecipeError(f"lora names {', '.join(unknown)}; parts are {', '.join(PARTS)}")
        if self.rank < 1 or not self.parts:
            raise RecipeError(f"lora has rank {self.rank} and {len(self.parts)} parts; expected at least 1 of each")
        if not 0 < self.keep <= 1:
            raise RecipeError(f"lora's keep is {self.keep}; expected a share above 0, at most 1")


@dataclass(frozen=True)
class Stage:
    """One stage of a run (the paper's are 1, 1.5, 2 and 3; appendix A)."""

    name: str
    objective: str  # a file of fastvlm.train.objectives
    samples: int  # to see in this stage
    batch_size: int  # samples
    learning_rate: dict[str, float]  # a part -> its peak; a part that is not named is frozen
    data: list[dict[str, Any]] = field(default_factory=list)  # the mixture: each source with its `weight`
    frozen: tuple[str, ...] = ()  # modules that stay as they are although their part learns, such as vision_tower.stages.0
    objective_learning_rate: float | None = None  # of weights that the objective itself owns; None takes the highest of the parts
    options: dict[str, Any] = field(default_factory=dict)  # of the objective
    batch_tokens: int | None = None  # at least so many tokens before the weights move: batches of `batch_size` are put together till then
    template: str | None = None  # chat template while this stage trains, such as plain (captions only); None: the model's own
    lora: Lora | None = None
    schedule: str = "cosine"
    final_learning_rate: float = 0.0  # where the schedule ends, as a share of the peak
    warmup_samples: int = 0
    optimizer: str = "adamw"  # or muon, for weight matrices; all else learns by AdamW
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    precision: str = "float32"  # or bfloat16: autocast
    gradient_checkpointing: bool = False
    ema_decay: float = 0.0  # 0: no moving average of the weights
    resolution: int | None = None  # side in pixels to which pictures are brought; None: what the model had before
    image_mode: str | None = None  # of the image processor (pad, crop, anyres, native); None: what the model had before
    micro_batch_size: int | None = None  # samples that a process computes at once; None: its whole share of a batch
    freeze_batch_norm: bool = False  # keep the tower's averages although it learns
    evaluate: dict[str, Any] | None = None  # task, split, metric, every_samples, limit, options: score while training, keep the best

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.learning_rate) - set(PARTS)):
            raise RecipeError(f"stage {self.name!r}: learning_rate names {', '.join(unknown)}; parts are {', '.join(PARTS)}")
        if idle := [name for name in self.frozen if name.partition(".")[0] not in self.learning_rate]:
            raise RecipeError(f"stage {self.name!r}: frozen names {idle[0]}, whose part has no learning_rate: it does not learn anyway")
        if self.schedule not in SCHEDULES:
            raise RecipeError(f"stage {self.name!r}: schedule is {self.schedule!r}; expected one of {', '.join(SCHEDULES)}")
        if self.optimizer not in ("adamw", "muon"):
            raise RecipeError(f"stage {self.name!r}: optimizer is {self.optimizer!r}; expected adamw or muon")
        if self.precision not in ("float32", "bfloat16"):
            raise RecipeError(f"stage {self.name!r}: precision is {self.precision!r}; expected float32 or bfloat16")
        if self.samples <= 0 or self.batch_size <= 0:
            raise RecipeError(f"stage {self.name!r}: samples and batch_size must be positive")

        if self.template is not None and self.template not in BUILT_IN:
            raise RecipeError(f"stage {self.name!r}: template is {self.template!r}; expected one of {', '.join(BUILT_IN)}")
        if self.lora is not None and (idle := sorted(set(self.lora.parts) - set(self.learning_rate))):
            raise RecipeError(f"stage {self.name!r}: lora names {', '.join(idle)}, for which there is no learning_rate")
        if self.evaluate is not None:
            known = {"task", "split", "metric", "every_samples", "limit", "options", "lower_is_better"}
            if unknown := sorted(set(self.evaluate) - known):
                raise RecipeError(f"stage {self.name!r}: evaluate has unknown field {unknown[0]!r}; known: {', '.join(sorted(known))}")
            if missing := sorted({"task", "metric", "every_samples"} - set(self.evaluate)):
                raise RecipeError(f"stage {self.name!r}: evaluate needs {', '.join(missing)}")

    @property
    def steps(self) -> int:
        return -(-self.samples // self.batch_size)

    @property
    def evaluate_every_steps(self) -> int:
        """0 where the stage is not scored."""
        return 0 if self.evaluate is None else max(1, self.evaluate["every_samples"] // self.batch_size)

    def learning_rate_scale(self, step: int) -> float:
        """Share of the peak learning rate at a step counted from 0."""
        warmup = self.warmup_samples // self.batch_size
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[self.schedule]
        return self.final_learning_rate + (1 - self.final_learning_rate) * shape


@dataclass(frozen=True)
class Recipe:
    """A model to start from and the stages to take it through."""

    model: str | dict[str, Any]  # a checkpoint; the sizes of a new one (vision_config, ...); or vision and llm, to be joined
    stages: tuple[Stage, ...]
    seed: int = 0


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; errors name the file.

    Args:
        changes: `FIELD=VALUE`, the field's place in dots and the value in YAML: `model=0.5b`, `stages.0.data.0.llava=mine.json`.
    """
    values = _read(Path(path))
    for change in changes:
        _change(values, change)
    try:
        stages = tuple(_build(Stage, stage) for stage in values.get("stages") or [])
        if not stages:
            raise RecipeError("no stages")
        return _build(Recipe, {**values, "stages": stages})
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    """The fields of a file, on top of those of the recipe that its `base` names; the same for its stages, whose `base` is a stage there."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected fields model and stages")
    base = values.pop("base", None)
    if base is None:
        return values
    inherited = _read(path.parent / base)
    stages = {stage["name"]: stage for stage in inherited.get("stages") or []}
    for index, stage in enumerate(values.get("stages") or []):
        if "base" in stage:
            if stage["base"] not in stages:
                raise RecipeError(f"{path}: no stage {stage['base']!r} in {base}; it has {', '.join(stages)}")
            own = {name: value for name, value in stage.items() if name != "base"}
            values["stages"][index] = {**stages[stage["base"]], **own}
    return {**inherited, **values}


def _build(kind: type, values: dict[str, Any]) -> Any:
    fields = {item.name: item for item in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        raise RecipeError(f"unknown field {unknown[0]!r}; known: {', '.join(fields)}")
    required = [name for name, item in fields.items() if item.default is item.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise RecipeError(f"field {missing[0]!r} is missing")
    if isinstance(values.get("lora"), dict):
        values = {**values, "lora": _build(Lora, values["lora"])}
    return kind(**{name: tuple(value) if name in _TUPLES and value is not None else value for name, value in values.items()})


def _change(values: Any, change: str) -> None:
    """Set one field of what was read."""
    import yaml

    place, equals, text = change.partition("=")
    *path, last = place.split(".")
    if not equals:
        raise RecipeError(f"{change!r} is no FIELD=VALUE")
    try:
        for name in path:
            values = values[int(name) if isinstance(values, list) else name]
        values[int(last) if isinstance(values, list) else last] = yaml.safe_load(text)
    except (KeyError, IndexError, ValueError, TypeError, yaml.YAMLError):
        raise RecipeError(f"{place!r} is no field of the recipe; write for example stages.0.samples=600") from None
