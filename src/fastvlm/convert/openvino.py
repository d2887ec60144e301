"""Bundles for the OpenVINO runtime: vision.xml and language.xml with their weights beside them."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm import telemetry
from fastvlm.convert import _quantize, _vision
from fastvlm.convert._decoder import DecoderGraph
from fastvlm.convert._guard import Reference
from fastvlm.convert._progress import progress
from fastvlm.convert._quantize_encoder import quantize_encoder
from fastvlm.convert._weights import Weights
from fastvlm.runtimes.openvino import LANGUAGE_FILE, VISION_FILE

if TYPE_CHECKING:
    import openvino as ov

PRECISIONS = ("int8", "bf16", "fp32", "int4")  # the first that passes the guard is the default; int4 only where it is asked for
PACKAGES = ("openvino", "nncf", "torch")


def write(
    weights: Weights, folder: Path, precision: str, calibration: Any, table: Any, reference: Reference | None, least_cosine: float | None
) -> dict[str, Any]:
    """Write the graphs.

    Args:
        calibration: makes pixel_values (1, 3, H, W) to quantise with; called for int8 and int4.
        table: the token embedding, for the reference.
        reference: filled in on the way; None where it has been already.
        least_cosine: which the features must keep where they are quantised; None where that does not matter.

    Returns:
        Settings of the manifest.
    """
    telemetry.disable()
    with _vision.loaded_encoder(weights) as encoder:
        if reference is not None:
            reference.encode(encoder)
        graph = _vision.trace_encoder(encoder)
        if precision in ("int8", "int4"):
            graph = quantize_encoder(graph, list(calibration()), least_cosine)
        if precision != "fp32":
            graph = _quantize.round_to_bfloat16(graph)  # what is no integer yet
        _save(graph, folder / VISION_FILE)
        del graph
    gc.collect()

    config, decoder = weights.model.config.text_config, weights.model.language_model
    compressor = _quantize.Compressor(precision, config)
    language = DecoderGraph(decoder)
    if reference is not None:
        reference.embed(table, weights.model.config)
    for number in progress(range(config.num_hidden_layers), "language model", "layer"):
        with weights.loaded(f"language_model.layers.{number}") as layer:
            language.add_layer(layer, compressor.layer)
            if reference is not None:
                reference.layer(decoder, layer, config.sliding_windows[number])
        if number % 4 == 3:
            gc.collect()  # graphs of a trace refer to each other, and hold the layer's weights
    with weights.head() as head:
        model = language.finish(head, compressor.head)
        if reference is not None:
            reference.head(head)
        _save(model, folder / LANGUAGE_FILE)
    return {}


def _save(graph: "ov.Model", path: Path) -> None:
    """Write a graph with integers that 32 bits hold.

    torch says "to the end" of a slice as 2^63 - 1. OpenVINO computes with 32 bits; where it compiles a graph it takes the nearest, where it
    reads a compiled one back with its weights from the file (2026.4) the lowest bits: -1, and the slice is empty.
    """
    import openvino as ov
    from openvino import opset13

    limits = np.iinfo(np.int32)
    for node in graph.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i64:
            near = np.clip(node.data, limits.min, limits.max)
            if not np.array_equal(near, node.data):
                constant = opset13.constant(near)
                for target in node.output(0).get_target_inputs():
                    target.replace_source_output(constant.output(0))
    ov.save_model(graph, path, compress_to_fp16=False)
