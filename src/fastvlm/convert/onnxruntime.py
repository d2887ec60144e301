"""Bundles for ONNX Runtime: vision.onnx and language.onnx, exported from the PyTorch modules. Float32 only."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastvlm.bundle import BundleError
from fastvlm.convert import _vision
from fastvlm.convert._decoder import Prologue, TracedCache
from fastvlm.convert._guard import Reference
from fastvlm.convert._weights import Weights
from fastvlm.runtimes import is_installed
from fastvlm.runtimes.onnxruntime import LANGUAGE_FILE, VISION_FILE

PRECISIONS = ("fp32",)
PACKAGES = ("onnxruntime", "onnx", "torch")
_OPSET = 18


class _Language(nn.Module):
    """The whole decoder; keys and values come in and go out."""

    def __init__(self, weights: Weights, head: nn.Module):
        super().__init__()
        decoder = weights.model.language_model
        self.windows = decoder.config.sliding_windows
        self.distinct = list(dict.fromkeys(self.windows))
        self.prologue = Prologue(decoder, self.distinct)
        self.layers, self.head = decoder.layers, head

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cos, sin, *masks = self.prologue(position_ids, attention_mask)
        hidden, present = inputs_embeds, []
        for number, (layer, window) in enumerate(zip(self.layers, self.windows, strict=True)):
            cache: Any = TracedCache(past[2 * number], past[2 * number + 1])
            last_only = number == len(self.layers) - 1
            hidden = layer(hidden, cos, sin, masks[self.distinct.index(window)], cache, last_only)
            present += [cache.keys, cache.values]
        return (self.head(hidden), *present)


def write(
    weights: Weights, folder: Path, precision: str, calibration: Any, table: Any, reference: Reference | None, least_cosine: float | None
) -> dict[str, Any]:
    """Write the graphs; arguments as for the openvino converter. Needs the whole model in memory."""
    if not (is_installed("onnx") and is_installed("onnxruntime")):
        raise BundleError('this needs onnx and onnxruntime, which are not installed: pip install "fastvlm[onnx]"')
    with _vision.loaded_encoder(weights) as encoder:
        if reference is not None:
            reference.encode(encoder)
        axes = {"pixel_values": {0: "images", 2: "height", 3: "width"}, "image_features": {0: "images", 1: "tokens"}}
        _export(encoder, (torch.rand(1, 3, 128, 128),), folder / VISION_FILE, ["pixel_values"], ["image_features"], axes)

    config, decoder = weights.model.config.text_config, weights.model.language_model
    if reference is not None:
        reference.embed(table, weights.model.config)
    with weights.loaded("language_model.layers") as layers, weights.head() as head:
        if reference is not None:
            for number, layer in enumerate(layers):
                reference.layer(decoder, layer, config.sliding_windows[number])
            reference.head(head)
        example = (torch.zeros(2, 3, config.hidden_size), torch.ones(2, 5, dtype=torch.bool), torch.arange(5).repeat(2, 1)[:, 2:])
        decoder.rotary.inv_freq(example[2])  # made now, the frequencies are constants of the trace
        past = [torch.zeros(2, config.num_key_value_heads, 2, config.head_dim) for _ in range(2 * config.num_hidden_layers)]
        names = [f"{part}.{number}" for number in range(config.num_hidden_layers) for part in ("keys", "values")]
        inputs = ["inputs_embeds", "attention_mask", "position_ids", *(f"past.{name}" for name in names)]
        outputs = ["logits", *(f"present.{name}" for name in names)]
        axes = {
            "inputs_embeds": {0: "batch", 1: "new"}, "attention_mask": {0: "batch", 1: "columns"}, "position_ids": {0: "batch", 1: "new"},
            "logits": {0: "batch"},
            **{f"past.{name}": {0: "batch", 2: "past"} for name in names},
            **{f"present.{name}": {0: "batch", 2: "columns"} for name in names},
        }  # fmt: skip
        _export(_Language(weights, head), (*example, *past), folder / LANGUAGE_FILE, inputs, outputs, axes)
    return {}


def _export(
    module: nn.Module, example: tuple[Tensor, ...], path: Path, inputs: list[str], outputs: list[str], axes: dict[str, Any]
) -> None:
    names: dict[str, Any] = {"input_names": inputs, "output_names": outputs, "dynamic_axes": axes}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes that the trace keeps as numbers are widths; and the exporter's own age
        torch.onnx.export(module.eval(), example, str(path), **names, opset_version=_OPSET, dynamo=False)
