"""A whole run: the model a recipe names or describes, through its stages, into a folder that can be stopped and continued."""

import logging
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fastvlm.checkpoint import open_checkpoint, save_pretrained
from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm.image_processing import ImageProcessor
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.processor import Processor
from fastvlm.train.byte_tokenizer import save_byte_tokenizer
from fastvlm.train.initialize import initialize_language_model, initialize_tower
from fastvlm.train.loop import is_finished, run_stage, stage_folder
from fastvlm.train.recipe import Recipe, RecipeError
from fastvlm.train.state import find_state, load_state

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
    processor = new_processor(recipe.model)
    return new_model(recipe.model, processor.image_token_id, recipe.seed), processor


def run(recipe: Recipe, out_dir: Path, *, workers: int = 1, save_every_s: float = 300.0) -> FastVLMModel:
    """Train all stages of a recipe, going on where `out_dir` was left; the result is the checkpoint `out_dir/model`."""
    model, processor = start(recipe)
    model.vision_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch 2.13's stubs lack it
    previous: Path | None = None
    for index, stage in enumerate(recipe.stages):
        folder = stage_folder(recipe, out_dir, index)
        if not is_finished(stage, folder):
            if previous is not None:
                load_state(previous, {"model": model}, None)
            same_objective = index > 0 and recipe.stages[index - 1].objective == stage.objective
            inherit_from = previous if same_objective else None
            run_stage(model, processor, recipe, stage, folder, inherit_from=inherit_from, workers=workers, save_every_s=save_every_s)
            export(model, processor, out_dir / "model")
        previous = find_state(folder / "state")
    assert previous is not None
    load_state(previous, {"model": model}, None)
    return model


def export(model: FastVLMModel, processor: Processor, folder: Path) -> None:
    """Write a checkpoint that `predict`, `convert` and transformers read, in place of the one that was there."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    save_pretrained(model, processor, new, dtype="bfloat16")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
