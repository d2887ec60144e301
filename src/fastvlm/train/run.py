"""A whole run: the model a recipe names or describes, through its stages, into a folder that can be stopped and continued."""

import copy
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fastvlm.checkpoint import Checkpoint, open_checkpoint, save_pretrained
from fastvlm.checkpoint.join import join, origin_of
from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm.evaluate.metrics import LOWER_IS_BETTER
from fastvlm.evaluate.runner import evaluate
from fastvlm.image_processing import ImageProcessor
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.plugins import load_plugin
from fastvlm.processor import Processor
from fastvlm.train.byte_tokenizer import save_byte_tokenizer
from fastvlm.train.initialize import initialize_language_model, initialize_tower
from fastvlm.train.loop import RunOptions, is_finished, run_stage, stage_folders
from fastvlm.train.preview import preview_stage
from fastvlm.train.recipe import Lora, Recipe, RecipeError, Stage
from fastvlm.train.state import find_state, load_model
from fastvlm.vlm import load

logger = logging.getLogger(__name__)


MODEL_FIELDS = ("vision_config", "text_config", "tokenizer", "image_size")


def new_processor(sizes: dict[str, Any]) -> Processor:
    """The processor of a new model: `tokenizer` is `bytes` or a checkpoint's folder, `image_size` its input's side in pixels."""
    name = sizes.get("tokenizer", "bytes")
    with TemporaryDirectory() as folder:
        if name == "bytes":
            save_byte_tokenizer(Path(folder), sizes["text_config"]["max_position_embeddings"])
        image_processor = ImageProcessor(size=sizes.get("image_size", 512))
        return Processor.from_folder(folder if name == "bytes" else name, image_processor=image_processor)


def new_model(sizes: dict[str, Any], image_token_id: int, seed: int) -> FastVLMModel:
    """A model with random weights from the `model` of a recipe."""
    if unknown := sorted(set(sizes) - set(MODEL_FIELDS)):
        raise RecipeError(f"model: unknown field {unknown[0]!r}; known: {', '.join(MODEL_FIELDS)}")
    text_config = TextConfig.from_dict(sizes["text_config"])
    vision_config = VisionConfig.from_dict({"model_args": sizes["vision_config"]})
    config = FastVLMConfig(vision_config, text_config, image_token_id, text_config.tie_word_embeddings)
    torch.manual_seed(seed)
    model = FastVLMModel(config)
    initialize_tower(model.vision_tower)
    initialize_language_model(model.multi_modal_projector)
    initialize_language_model(model.language_model)
    return model


def start(recipe: Recipe) -> tuple[FastVLMModel, Processor]:
    """What a recipe starts from: a checkpoint that `fastvlm.load` takes, in float32, or a new model."""
    if isinstance(recipe.model, str):
        checkpoint = open_checkpoint(recipe.model)
        return checkpoint.load_model(dtype="float32", device="cpu"), checkpoint.processor()
    if "vision" in recipe.model or "llm" in recipe.model:
        return _joined(recipe.model, recipe.seed)
    processor = new_processor(recipe.model)
    return new_model(recipe.model, processor.image_token_id, recipe.seed), processor


def _origin(model: str | dict[str, Any]) -> Checkpoint | None:
    """The checkpoint whose licence the trained model is under."""
    if isinstance(model, str):
        return open_checkpoint(model)
    return origin_of(model["vision"], model["llm"]) if "vision" in model else None


def _joined(parts: dict[str, Any], seed: int) -> tuple[FastVLMModel, Processor]:
    known = ("vision", "llm", "image_size", "chat_template")
    if unknown := sorted(set(parts) - set(known)):
        raise RecipeError(f"model: unknown field {unknown[0]!r}; known beside vision and llm: image_size, chat_template")
    if missing := sorted({"vision", "llm"} - set(parts)):
        raise RecipeError(f"model: {missing[0]!r} is missing")
    return join(parts["vision"], parts["llm"], image_size=parts.get("image_size"), chat_template=parts.get("chat_template"), seed=seed)


def run(recipe: Recipe, out_dir: Path, options: RunOptions | None = None) -> Path:
    """Train all stages of a recipe, going on where `out_dir` was left.

    Returns:
        `out_dir/model`: the checkpoint after the last stage. `out_dir/best` is the one that scored best, where stages are scored.
    """
    model, processor = start(recipe)
    origin = _origin(recipe.model)
    previous: tuple[Stage, Path] | None = None
    for stage, folder in stage_folders(recipe, out_dir):
        if stage.resolution is not None:
            processor.image_processor = processor.image_processor.at_size(stage.resolution)
        if stage.image_mode is not None:
            processor.image_processor = dataclasses.replace(processor.image_processor, mode=stage.image_mode)
        if not is_finished(stage, folder):
            inherit_from = None
            if previous is not None:
                model = FastVLMModel(model.config)  # the last stage may have left adapters or shards in the other one
                load_model(previous[1], model, previous[0].lora)
                inherit_from = (previous[0].objective, previous[1])
            adapter = out_dir / "adapter" if is_adapter_all(recipe) else None
            export = partial(export_state, config=model.config, processor=processor, lora=stage.lora, adapter_folder=adapter, origin=origin)
            model.vision_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch 2.13's stubs lack it
            scorer = Scorer(export, stage, out_dir)
            run_stage(
                model, _with_template(processor, stage), recipe, stage, folder,
                inherit_from=inherit_from, options=options, after_evaluation=scorer,
            )  # fmt: skip
            if int(os.environ.get("RANK", 0)) == 0:
                export(folder / "state", folder=out_dir / "model")
        state = find_state(folder / "state")
        assert state is not None
        previous = (stage, state)
    return out_dir / "model"


def dry_run(recipe: Recipe, folder: Path, *, processes: int = 1) -> Iterator[str]:
    """Lines about each stage of a recipe, as `preview_stage` says; trains nothing. `folder` takes the pictures."""
    model, processor = start(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    for stage in recipe.stages:
        if stage.resolution is not None:
            processor.image_processor = processor.image_processor.at_size(stage.resolution)
        yield from preview_stage(model, _with_template(processor, stage), recipe, stage, folder, processes=processes)


def is_adapter_all(recipe: Recipe) -> bool:
    """Whether all that a run changes is one LoRA adapter."""
    lora = recipe.stages[0].lora
    return len(recipe.stages) == 1 and lora is not None and set(recipe.stages[0].learning_rate) == set(lora.parts)


def _with_template(processor: Processor, stage: Stage) -> Processor:
    """The processor that a stage trains with; the model's own stays as it is."""
    if stage.template is None:
        return processor
    changed = copy.copy(processor)
    changed.chat_template = stage.template
    return changed


class Scorer:
    """Writes the checkpoint of a state, scores it on the stage's task, and keeps the best."""

    def __init__(self, export: Callable[..., None], stage: Stage, out_dir: Path):
        self.export, self.stage, self.out_dir = export, stage, out_dir

    def __call__(self, state: Path) -> dict[str, float]:
        """Metric -> mean, named `eval_...`."""
        settings = self.stage.evaluate or {}
        task = load_plugin("fastvlm.evaluate.tasks", settings["task"])
        self.export(state, folder=self.out_dir / "model")
        vlm = load(self.out_dir / "model", runtime="torch", dtype="float32", device="cpu")

        def generate_batch(conversations: Sequence[Any]) -> list[str]:
            return [result.text for result in vlm.generate_batch(conversations, max_new_tokens=task.MAX_NEW_TOKENS)]

        with TemporaryDirectory() as scratch:
            summary = evaluate(
                generate_batch,
                task,
                Path(scratch),
                split=settings.get("split"),
                limit=settings.get("limit"),
                options=settings.get("options"),
                progress=False,
            )
        scores = {f"eval_{name}": result["mean"] for name, result in summary["metrics"].items()}
        self._keep_best(scores)
        return scores

    def _keep_best(self, scores: dict[str, float]) -> None:
        settings = self.stage.evaluate or {}
        value = scores.get(f"eval_{settings['metric']}")
        if value is None:
            raise RecipeError(f"stage {self.stage.name!r}: evaluate has no {settings['metric']} in what it asked; got {', '.join(scores)}")
        record = self.out_dir / "best.json"
        best = json.loads(record.read_text())["value"] if record.exists() else None
        sign = -1 if settings.get("lower_is_better") or settings["metric"] in LOWER_IS_BETTER else 1
        if best is None or sign * value > sign * best:
            shutil.rmtree(self.out_dir / "best", ignore_errors=True)
            shutil.copytree(self.out_dir / "model", self.out_dir / "best")
            record.write_text(json.dumps({"stage": self.stage.name, "value": value, **scores}) + "\n")


def export_state(
    state: Path,
    config: FastVLMConfig,
    processor: Processor,
    folder: Path,
    *,
    lora: Lora | None = None,
    adapter_folder: Path | None = None,
    origin: Checkpoint | None = None,
) -> None:
    """Write a checkpoint that `predict`, `convert` and transformers read, of a state's averaged weights where it has them.

    Args:
        lora: of the state's stage; its adapters are merged.
        adapter_folder: takes the adapter itself too.
        origin: what the run started from; its licence goes along.
    """
    model = FastVLMModel(config)
    load_model(state, model, lora, adapter_folder=adapter_folder)
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    save_pretrained(model, processor, new, dtype="bfloat16", licenses_from=origin)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
