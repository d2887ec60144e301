"""Bundles for the OpenVINO runtime: vision.xml and language.xml with their weights beside them."""

import gc
from pathlib import Path
from typing import Any

from fastvlm import telemetry
from fastvlm.convert import _quantize, _vision
from fastvlm.convert._decoder import DecoderGraph
from fastvlm.convert._guard import Reference
from fastvlm.convert._progress import progress
from fastvlm.convert._weights import Weights
from fastvlm.runtimes.openvino import LANGUAGE_FILE, VISION_FILE

PRECISIONS = ("int8", "bf16", "fp32", "int4")  # the first that passes the guard is the default; int4 only where it is asked for
PACKAGES = ("openvino", "nncf", "torch")


def write(weights: Weights, folder: Path, precision: str, calibration: Any, table: Any, reference: Reference | None) -> dict[str, Any]:
    """Write the graphs.

    Args:
        calibration: makes pixel_values (1, 3, H, W) to quantise with; called for int8 and int4.
        table: the token embedding, for the reference.
        reference: filled in on the way; None where it has been already.

    Returns:
        Settings of the manifest.
    """
    telemetry.disable()
    import openvino as ov

    with _vision.loaded_encoder(weights) as encoder:
        if reference is not None:
            reference.encode(encoder)
        graph = _vision.trace_encoder(encoder)
        if precision == "bf16":
            graph = _quantize.round_to_bfloat16(graph)
        elif precision != "fp32":
            graph = _quantize.quantize_encoder(graph, list(calibration()))
        ov.save_model(graph, folder / VISION_FILE, compress_to_fp16=False)
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
        ov.save_model(model, folder / LANGUAGE_FILE, compress_to_fp16=False)
    return {}
