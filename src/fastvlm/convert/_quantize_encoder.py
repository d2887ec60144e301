"""int8 activations and weights in the encoder, by nncf; where some of it does not bear that, all that does.

    graph = quantize_encoder(graph, [pixel_values, ...], least_cosine=0.99)

Activations share one scale a map, so a map is lost whose largest channel is a hundred times the others. For an encoder that has such maps
there is a careful way: ranges without their rarest values, a zero point, scales of channels moved into the weights (SmoothQuant,
arXiv 2211.10438), depthwise convolutions, attention and the projector left as they are (they are little of the work); and then the maps
that still cost most, one by one.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm.convert._guard import cosine
from fastvlm.convert._progress import progress
from fastvlm.convert._quantize import quiet_nncf

if TYPE_CHECKING:
    import openvino as ov

CHECKED_PICTURES = 4
SMOOTHING = 0.8  # how much of the channels' scales goes into the weights; of 0.5 to 0.95 the best for nano
RAREST = 1e-4  # of an activation's values that its range leaves out
_BUDGET = 0.3  # of the loss that `least_cosine` allows, for all roundings, each by itself: together they cost more, and tokens differ too


def quantize_encoder(model: "ov.Model", pictures: Sequence[np.ndarray], least_cosine: float | None = None) -> "ov.Model":
    """Post-training quantisation of activations and weights to int8.

    Args:
        model: pixel_values (N, 3, H, W) -> image_features (N, T, D), in float32; it is changed.
        pictures: pixel_values (1, 3, H, W) each, for the ranges of the activations.
        least_cosine: wanted between the features of the pictures before and after. Where int8 throughout misses it, the maps that cost most
            are left in float32. None: int8 throughout.
    """
    pictures = [picture for picture in pictures if picture.shape == pictures[0].shape]
    checked = pictures[:CHECKED_PICTURES]
    wanted = []
    if least_cosine is not None:
        exact = _compile(model)
        wanted = [exact([picture])[0].copy() for picture in checked]
        del exact
    quantized = _quantize(model.clone(), pictures, is_careful=False)
    every_map = np.ones(len(_rounded(quantized)))
    if least_cosine is None or _Switched(quantized, checked, wanted).loss(every_map) <= 1 - least_cosine:
        return quantized
    del quantized
    careful = _quantize(model, pictures, is_careful=True)
    count = len(_rounded(careful))
    _spare(careful, checked, wanted, _BUDGET * (1 - least_cosine))
    left = count - len(_rounded(careful))
    print(f"the encoder does not bear int8 throughout: {left} of {count} maps are left as they are", file=sys.stderr)
    return careful


def _quantize(model: "ov.Model", pictures: Sequence[np.ndarray], is_careful: bool) -> "ov.Model":
    free = model.input(0).get_partial_shape()
    _even_channels(model)
    model.reshape(list(pictures[0].shape))  # a graph of fixed sizes plans its memory: a third of what one of free sizes takes
    with quiet_nncf() as nncf:
        # Symmetric where nothing speaks against it: a zero point would cost at every depthwise convolution.
        manner = _careful(nncf) if is_careful else {"preset": nncf.QuantizationPreset.PERFORMANCE}
        dataset = nncf.Dataset(progress(pictures, "measuring activations", "picture"))
        quantized = nncf.quantize(model, dataset, subset_size=len(pictures), fast_bias_correction=True, **manner)
    quantized.reshape(free)
    return quantized


def _careful(nncf: Any) -> dict[str, Any]:
    from nncf.quantization.range_estimator import AggregatorType, RangeEstimatorParameters, StatisticsCollectorParameters, StatisticsType

    end = StatisticsCollectorParameters(
        statistics_type=StatisticsType.QUANTILE, aggregator_type=AggregatorType.MEAN, quantile_outlier_prob=RAREST
    )
    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "model_type": nncf.ModelType.TRANSFORMER,
        "ignored_scope": nncf.IgnoredScope(types=["GroupConvolution", "MatMul"], validate=False),
        "advanced_parameters": nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParameters(min=end, max=end),
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=SMOOTHING, matmul=SMOOTHING),
        ),
    }


def _spare(model: "ov.Model", pictures: Sequence[np.ndarray], wanted: Sequence[np.ndarray], budget: float) -> None:
    """Take away the rounding of the maps that cost most by themselves, until the others' losses and the weights' add up to `budget`."""
    switched, maps = _Switched(model, pictures, wanted), _rounded(model)
    weights = switched.loss(np.zeros(len(maps)))
    each = progress(np.eye(len(maps)), "finding what int8 cannot hold", "map")
    losses = np.array([max(switched.loss(one) - weights, 0.0) for one in each])
    left = budget - weights
    for index in np.argsort(losses):
        left -= losses[index]
        if left < 0:
            _replace(maps[index].output(0), maps[index].input_value(0))


class _Switched:
    """A quantised encoder with a switch at each rounded map: one graph is compiled, not one for each choice of maps."""

    def __init__(self, model: "ov.Model", pictures: Sequence[np.ndarray], wanted: Sequence[np.ndarray]):
        from openvino import opset13 as ops

        self._pictures, self._wanted = pictures, wanted
        model = model.clone()
        maps = _rounded(model)
        switches = ops.parameter([len(maps)], np.float32)
        for index, node in enumerate(maps):
            exact, rounded = node.input_value(0), node.output(0)
            change = ops.subtract(rounded, exact)
            switched = ops.add(exact, ops.multiply(ops.gather(switches, np.int64(index), np.int64(0)), change))
            _replace(rounded, switched.output(0), but=change)
        model.add_parameters([switches])
        self._compiled = _compile(model)

    def loss(self, is_rounded: np.ndarray) -> float:
        """1 - the mean cosine between the features and those wanted; `is_rounded` has 1 for each map to round, in the graph's order."""
        switches = is_rounded.astype(np.float32)
        features = [self._compiled([picture, switches])[0] for picture in self._pictures]
        return 1 - float(np.mean([cosine(ours, theirs).mean() for ours, theirs in zip(features, self._wanted, strict=True)]))


def _rounded(model: "ov.Model") -> list[Any]:
    """Where activations are rounded, in the graph's order. Weights are integers already."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]


def _replace(output: Any, by: Any, but: Any = None) -> None:
    """Have what reads `output` read `by` instead, except the node `but`."""
    for target in output.get_target_inputs():
        if but is None or target.get_node().get_friendly_name() != but.get_friendly_name():
            target.replace_source_output(by)


def _compile(model: "ov.Model") -> "ov.CompiledModel":
    """In float32, rounding as the graph says it: what the 8-bit operators of this machine make of it is for the guard to say."""
    from fastvlm.runtimes.openvino import core

    return core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"})


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
