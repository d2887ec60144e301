"""The language model as one OpenVINO graph, traced from the PyTorch modules layer by layer.

    graph = DecoderGraph(model.language_model)
    for layer in model.language_model.layers:
        graph.add_layer(layer, compress)             # its weights are needed only during the call
    ov_model = graph.finish(norm_and_head, compress)

A piece of the model at a time is traced, compressed and hung on the graph, so converting needs the memory of one layer in float32 and of
the compressed rest. The graph keeps keys and values as state:

    inputs_embeds (B, S, D), attention_mask (B, columns) bool, position_ids (B, S) int64, beam_idx (B,) int32  ->  logits (B, 1, V)

Columns are those already in the state followed by the S new ones; `beam_idx` says which row of the state each row continues.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastvlm.model.decoder import Decoder, DecoderLayer, causal_mask

if TYPE_CHECKING:
    import openvino as ov

Compress = Callable[["ov.Model"], "ov.Model"]  # what is done to a piece before it is hung on the graph


class TracedCache:
    """As much of `KVCache` as a layer uses; what it held and holds are inputs and outputs of the trace."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.keys, self.values = torch.cat((self.keys, key), dim=2), torch.cat((self.values, value), dim=2)
        return self.keys, self.values


class Prologue(nn.Module):
    """What all layers share: the rotary angles, and a mask for each window that occurs, as what is added to the scores.

    A mask of truth values OpenVINO 2026.4 turns into numbers one by one, in each layer again: two thirds of a prefill of 441 tokens.
    """

    def __init__(self, decoder: Decoder, windows: Sequence[int | None]):
        super().__init__()
        self.rotary, self.windows = decoder.rotary, windows

    def forward(self, position_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        new, total, device = position_ids.shape[1], attention_mask.shape[1], attention_mask.device
        masks = (causal_mask(new, total, attention_mask, window, device) for window in self.windows)
        added = (torch.where(mask, 0.0, -torch.inf) for mask in masks if mask is not None)  # with `valid` given none is None
        return (*self.rotary(position_ids), *added)


class _Layer(nn.Module):
    def __init__(self, layer: DecoderLayer, last_only: bool):
        super().__init__()
        self.layer, self.last_only = layer, last_only

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cache: Any = TracedCache(keys, values)
        return self.layer(x, cos, sin, mask, cache, self.last_only), cache.keys, cache.values


class DecoderGraph:
    """See the module. Sizes of the traces' examples do not matter: every dimension but the widths stays free."""

    def __init__(self, decoder: Decoder):
        import openvino as ov
        from openvino import opset13 as ops

        self._config = config = decoder.config
        self._windows = list(dict.fromkeys(config.sliding_windows))
        self._assigns: list[Any] = []
        self._num_layers = 0

        def parameter(name: str, shape: list[int], dtype: Any) -> Any:
            node = ops.parameter(ov.PartialShape(shape), dtype, name)
            node.output(0).set_names({name})
            return node

        self._inputs = {
            "inputs_embeds": parameter("inputs_embeds", [-1, -1, config.hidden_size], ov.Type.f32),
            "attention_mask": parameter("attention_mask", [-1, -1], ov.Type.boolean),
            "position_ids": parameter("position_ids", [-1, -1], ov.Type.i64),
            "beam_idx": parameter("beam_idx", [-1], ov.Type.i32),
        }
        self._hidden = self._inputs["inputs_embeds"].output(0)
        self._empty = self._empty_state()
        example = (torch.arange(5).repeat(2, 1)[:, 2:], torch.ones(2, 5, dtype=torch.bool))
        decoder.rotary.inv_freq(example[0])  # made now, the frequencies are constants of the trace
        prologue = trace(Prologue(decoder, self._windows), example, self._widths(None, None))
        cos, sin, *masks = self._attach(prologue, [self._inputs["position_ids"].output(0), self._inputs["attention_mask"].output(0)])
        self._cos, self._sin, self._masks = cos, sin, dict(zip(self._windows, masks, strict=True))

    def add_layer(self, layer: DecoderLayer, compress: Compress) -> None:
        """The next layer, in order. The last one gives the last position only: no other's logits are wanted."""
        from openvino import opset13 as ops

        config = self._config
        window = config.sliding_windows[self._num_layers]
        width, kv_heads = config.head_dim, config.num_key_value_heads
        state = torch.zeros(2, kv_heads, 2, width)
        example = (
            torch.zeros(2, 3, config.hidden_size), torch.zeros(2, 3, width), torch.zeros(2, 3, width),
            torch.zeros(2, 1, 3, 5), state, state.clone(),
        )  # fmt: skip
        kv = [-1, kv_heads, -1, width]
        shapes = [[-1, -1, config.hidden_size], [-1, -1, width], [-1, -1, width], [-1, 1, -1, -1], kv, kv]
        is_last = self._num_layers == config.num_hidden_layers - 1
        piece = compress(trace(_Layer(layer, is_last), example, shapes))
        names = [f"{part}.{self._num_layers}" for part in ("keys", "values")]
        past = [ops.gather(self._state(name), self._inputs["beam_idx"], 0).output(0) for name in names]
        self._hidden, *present = self._attach(piece, [self._hidden, self._cos, self._sin, self._masks[window], *past])
        self._assigns += [ops.assign(output.get_node(), name) for output, name in zip(present, names, strict=True)]
        self._num_layers += 1

    def finish(self, head: nn.Module, compress: Compress) -> "ov.Model":
        """The whole model. `head`: hidden states (B, 1, D) of the last position -> logits (B, 1, V)."""
        import openvino as ov
        from openvino import opset13 as ops

        size = self._config.hidden_size
        piece = compress(trace(head, (torch.zeros(2, 1, size),), [[-1, 1, size]]))
        (logits,) = self._attach(piece, [self._hidden])
        logits.set_names({"logits"})
        model = ov.Model([ops.result(logits)], self._assigns, list(self._inputs.values()), "language_model")
        model.validate_nodes_and_infer_types()
        return model

    def _widths(self, *widths: int | None) -> list[list[int]]:
        return [[-1, -1, *([width] if width else [])] for width in widths]

    def _state(self, name: str) -> Any:
        import openvino as ov
        from openvino import opset13 as ops

        config = self._config
        shape = ov.PartialShape([-1, config.num_key_value_heads, -1, config.head_dim])
        return ops.read_value(self._empty, name, ov.Type.f32, shape)

    def _empty_state(self) -> Any:
        """(B, kv_heads, 0, head_dim): what a state holds before anything came; its batch is the input's."""
        import numpy as np
        from openvino import opset13 as ops

        config = self._config
        batch = ops.gather(ops.shape_of(self._inputs["inputs_embeds"]), np.array([0], np.int64), np.array(0, np.int64))
        rest = np.array([config.num_key_value_heads, 0, config.head_dim], np.int64)
        return ops.broadcast(np.array(0, np.float32), ops.concat([batch, rest], 0))

    def _attach(self, piece: "ov.Model", sources: Sequence[Any]) -> list[Any]:
        """Put `sources` in place of the piece's inputs; returns what its outputs were."""
        for parameter, source in zip(piece.get_parameters(), sources, strict=True):
            for target in parameter.output(0).get_target_inputs():
                target.replace_source_output(source)
        return [result.input_value(0) for result in piece.get_results()]


def trace(module: nn.Module, example: tuple[Tensor, ...], shapes: Sequence[Sequence[int]]) -> "ov.Model":
    """The module as a graph. Dimensions of -1 in `shapes` stay free, whatever the example's are."""
    import openvino as ov

    with torch.no_grad(), warnings.catch_warnings():
        # Sizes that the trace keeps as numbers are widths, which do not change; tests run the graphs at other lengths.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module.eval(), example, check_trace=False)
        return ov.convert_model(traced, example_input=example, input=[ov.PartialShape(list(shape)) for shape in shapes])
