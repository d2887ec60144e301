"""A whole run: the model a recipe names or describes, through its stages, into a folder that can be stopped and continued."""

import logging
from pathlib import Path
from typing import Any

import torch

from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.train.initialize import initialize_language_model, initialize_tower
from fastvlm.train.loop import is_finished, run_stage, stage_folder
from fastvlm.train.recipe import Recipe, RecipeError
from fastvlm.train.state import find_state, load_state

logger = logging.getLogger(__name__)


def new_model(sizes: dict[str, Any], seed: int) -> FastVLMModel:
    """A model with random weights from the `model` of a recipe: vision_config (sizes only), text_config, image_token_id."""
    if unknown := sorted(set(sizes) - {"vision_config", "text_config", "image_token_id"}):
        raise RecipeError(f"model: unknown field {unknown[0]!r}; known: vision_config, text_config, image_token_id")
    text_config = TextConfig.from_dict(sizes["text_config"])
    vision_config = VisionConfig.from_dict({"model_args": sizes["vision_config"]})
    config = FastVLMConfig(vision_config, text_config, sizes["image_token_id"], text_config.tie_word_embeddings)
    torch.manual_seed(seed)
    model = FastVLMModel(config)
    initialize_tower(model.vision_tower)
    initialize_language_model(model.multi_modal_projector)
    initialize_language_model(model.language_model)
    return model


def run(recipe: Recipe, out_dir: Path, *, processor: Any = None, workers: int = 1, save_every_s: float = 300.0) -> FastVLMModel:
    """Train all stages of a recipe, going on where `out_dir` was left."""
    if isinstance(recipe.model, str):
        raise RecipeError("model: training from a checkpoint needs its name resolved first")
    model = new_model(recipe.model, recipe.seed)
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
        previous = find_state(folder / "state")
    assert previous is not None
    load_state(previous, {"model": model}, None)
    return model
