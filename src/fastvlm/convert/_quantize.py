"""What precision means for a graph, by nncf: int8 activations and weights in the encoder; int8 or int4 weights in the decoder.

    encoder = quantize_encoder(encoder, [pixel_values, ...])
    layer = Compressor("int4", config).layer(layer)

Data-free for the decoder: rounding its weights by themselves costs little at these widths, and the guard measures it.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm import telemetry
from fastvlm.bundle import BundleError
from fastvlm.config import TextConfig
from fastvlm.convert._progress import progress
from fastvlm.runtimes import is_installed

if TYPE_CHECKING:
    import openvino as ov

GROUP_SIZES = (128, 64, 32)  # of int4: values that share a scale


def quantize_encoder(model: "ov.Model", pictures: Sequence[np.ndarray]) -> "ov.Model":
    """Post-training quantisation of activations and weights to int8.

    Args:
        pictures: pixel_values (1, 3, H, W) each, for the ranges of the activations.
    """
    free = model.input(0).get_partial_shape()
    _even_channels(model)
    model.reshape(list(pictures[0].shape))  # a graph of fixed sizes plans its memory: a third of what one of free sizes takes
    with _quiet() as nncf:
        quantized = nncf.quantize(
            model,
            nncf.Dataset(
                progress([picture for picture in pictures if picture.shape == pictures[0].shape], "measuring activations", "picture")
            ),
            preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric: a zero point would cost at every depthwise convolution
            subset_size=len(pictures),
            fast_bias_correction=True,
        )
    quantized.reshape(free)
    return quantized


def _even_channels(model: "ov.Model") -> None:
    """Bring the channels of a convolution's weights to one size, and its outputs back: exact in float32.

    nncf takes no channel's scale below a hundredth of the largest, so of a layer with one channel of large weights (BatchNorm of a variance
    near zero, folded) all others would be rounded to nothing.
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        leading = {"Convolution": 1, "GroupConvolution": 2}.get(node.get_type_name(), 0)  # axes of the output channels
        if not leading or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        weights = node.input_value(1).get_node().data
        sizes = np.abs(weights).max(tuple(range(leading, weights.ndim)), keepdims=True)
        sizes[sizes == 0] = sizes.max()  # a channel of zeros is exact at any scale
        if sizes.min() >= 0.01 * sizes.max():
            continue
        users = node.output(0).get_target_inputs()
        node.input(1).replace_source_output(ops.constant(weights / sizes).output(0))
        back = ops.multiply(node.output(0), ops.constant(sizes.reshape(1, -1, 1, 1)))
        for user in users:
            user.replace_source_output(back.output(0))


class Compressor:
    """What is done to pieces of the decoder: `fp32` nothing, `bf16` rounded, `int8` and `int4` weights in fewer bits."""

    def __init__(self, precision: str, config: TextConfig):
        self.precision = precision
        widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
        self._group_size = next((size for size in GROUP_SIZES if all(width % size == 0 for width in widths)), -1)

    def layer(self, model: "ov.Model") -> "ov.Model":
        if self.precision != "int4":
            return self.head(model)
        with _quiet() as nncf:
            mode = nncf.CompressWeightsMode.INT4_SYM
            return nncf.compress_weights(model, mode=mode, group_size=self._group_size, ratio=1.0, all_layers=True)

    def head(self, model: "ov.Model") -> "ov.Model":
        """The head stays in int8 also for int4: it decides between near words, and is read once a token."""
        if self.precision == "fp32":
            return model
        if self.precision == "bf16":
            return round_to_bfloat16(model)
        with _quiet() as nncf:
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def round_to_bfloat16(model: "ov.Model") -> "ov.Model":
    """Matrices become constants of bfloat16 that are widened where they are used."""
    import openvino as ov
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32 or len(node.get_output_shape(0)) < 2:
            continue
        values = np.ascontiguousarray(node.get_data(), np.float32)
        bits = values.view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even
        tensor = ov.Tensor(ov.Type.bf16, ov.Shape(values.shape))  # one that owns its memory: the constant only points to it
        tensor.data.view(np.uint16)[...] = rounded
        widened = ops.convert(ops.constant(tensor), ov.Type.f32)
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(widened.output(0))
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """nncf, without its bars and notes on stdout."""
    telemetry.disable()
    if not is_installed("nncf"):
        raise BundleError('quantising needs nncf, which is not installed: pip install "fastvlm[torch]"')
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level would mute the handlers of the whole process
    with contextlib.redirect_stdout(io.StringIO()):
        yield nncf
