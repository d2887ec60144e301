"""What precision means for a graph's weights, by nncf.

    layer = Compressor("int4", config).layer(layer)

Data-free: rounding a decoder's weights by themselves costs little at these widths, and the guard measures it. What becomes of the
encoder's activations is in `_quantize_encoder`.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm import telemetry
from fastvlm.bundle import BundleError
from fastvlm.config import TextConfig
from fastvlm.runtimes import is_installed

if TYPE_CHECKING:
    import openvino as ov

GROUP_SIZES = (128, 64, 32)  # of int4: values that share a scale


class Compressor:
    """What is done to pieces of the decoder: `fp32` nothing, `bf16` rounded, `int8` and `int4` weights in fewer bits."""

    def __init__(self, precision: str, config: TextConfig):
        self.precision = precision
        widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
        self._group_size = next((size for size in GROUP_SIZES if all(width % size == 0 for width in widths)), -1)

    def layer(self, model: "ov.Model") -> "ov.Model":
        if self.precision != "int4":
            return self.head(model)
        with quiet_nncf() as nncf:
            mode = nncf.CompressWeightsMode.INT4_SYM
            return nncf.compress_weights(model, mode=mode, group_size=self._group_size, ratio=1.0, all_layers=True)

    def head(self, model: "ov.Model") -> "ov.Model":
        """The head stays in int8 also for int4: it decides between near words, and is read once a token."""
        if self.precision == "fp32":
            return model
        if self.precision == "bf16":
            return round_to_bfloat16(model)
        with quiet_nncf() as nncf:
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def round_to_bfloat16(model: "ov.Model") -> "ov.Model":
    """Matrices of float32 become constants of bfloat16 that are widened where they are used."""
    import openvino as ov
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        if sum(side > 1 for side in node.get_output_shape(0)) < 2:  # scales and biases are vectors, whatever their shape
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
def quiet_nncf() -> Iterator[Any]:
    """nncf, without its bars and notes on stdout."""
    telemetry.disable()
    if not is_installed("nncf"):
        raise BundleError('quantising needs nncf, which is not installed: pip install "fastvlm[torch]"')
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level would mute the handlers of the whole process
    with contextlib.redirect_stdout(io.StringIO()):
        yield nncf
