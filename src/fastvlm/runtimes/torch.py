"""PyTorch: the reference that every other runtime is compared with, and the runtime for CUDA and MPS.

    runtime = TorchRuntime(model)                                             # a FastVLMModel, as it is
    runtime = load_runtime("torch", checkpoint, dtype="float32", device="cpu")

In float32 it computes what the reference implementation does. The default dtype is the fastest that the device computes natively.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm.config import FastVLMConfig
from fastvlm.runtimes import default_threads, is_installed
from fastvlm.runtimes._lora import merge_adapter

if TYPE_CHECKING:
    import torch

    from fastvlm.checkpoint import Checkpoint
    from fastvlm.model.fastvlm import FastVLMModel

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")

_IMAGES_AT_ONCE = 4  # per tower call: activations of one 1024 x 1024 image take some 200 MB in float32, and more images gain nothing
_SPARE_COLUMNS = 256  # of a new cache, for the answer; it grows by doubling past that


def unavailable_reason() -> str | None:
    return None if is_installed("torch") else 'this needs PyTorch, which is not installed: pip install "fastvlm[torch]"'


def load(
    source: "Checkpoint",
    *,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    adapter: str | Path | None = None,
    fold: bool | None = None,
    compile: bool = False,
) -> "TorchRuntime":
    """Load a checkpoint into memory.

    Args:
        source: `fastvlm.checkpoint.Checkpoint`.
        dtype: of `DTYPES`; in float16 the vision tower stays in float32, where its activations fit.
        device: of `DEVICES`, or `cuda:1` and the like.
        threads: CPU threads, a setting of the whole process; None takes `default_threads()`.
        adapter: folder of a LoRA adapter to merge into the weights.
        fold: fold what can be folded in the tower: faster, but results move in the last digits. None folds unless in float32, and not
            with an adapter, whose merged weights may be wanted for saving.
        compile: compile the tower and the projector for each size of pictures, which takes a minute or two at its first use.
    """
    import torch

    from fastvlm.model.fastvithd import fold as fold_tower
    from fastvlm.model.fastvithd import reparameterize

    torch_device = _device(device)
    torch_dtype = _dtype(dtype, torch_device)
    if torch_device.type == "cpu":
        torch.set_num_threads(threads or default_threads())
    model = source.load_model(dtype=torch_dtype, device=torch_device)
    if adapter is not None:
        merge_adapter(model, adapter)
    model.vision_tower = reparameterize(model.vision_tower)
    if (torch_dtype != torch.float32 and adapter is None) if fold is None else fold:
        model.vision_tower = fold_tower(model.vision_tower)
    runtime = TorchRuntime(model, source.context_length)
    if compile:
        runtime.compile()
    return runtime


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not index.isdecimal()):
        raise ValueError(f"unknown device {name!r}; available: {', '.join(DEVICES)}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but this PyTorch sees no CUDA device; use device 'cpu' or 'auto'")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}, but there are {torch.cuda.device_count()} CUDA devices")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is 'mps', but this PyTorch has no MPS here; use device 'cpu' or 'auto'")
    return torch.device(name)


def _dtype(name: str, device: "torch.device") -> "torch.dtype":
    import torch

    from fastvlm.model.precision import has_fast_bfloat16

    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r} for the torch runtime; available: {', '.join(DTYPES)}")
    if name != "auto":
        return getattr(torch, name)
    if device.type != "mps" and has_fast_bfloat16(device):
        return torch.bfloat16
    return torch.float32 if device.type == "cpu" else torch.float16


class TorchRuntime:
    """A `FastVLMModel` behind the runtime contract. Its caches are the model's own."""

    name = "torch"

    def __init__(self, model: "FastVLMModel", max_sequence_length: int | None = None):
        """`max_sequence_length`: tokens of prompt and answer together; None takes the language model's own limit."""
        import torch

        self.model = model.eval().requires_grad_(False)
        self.model.vision_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPU
        self.config: FastVLMConfig = model.config
        self._encode: Any = self.model.encode_images
        self.max_sequence_length = max_sequence_length or model.config.text_config.max_position_embeddings

    def compile(self) -> None:
        """Encode with compiled code from now on."""
        import torch

        self._encode = torch.compile(self.model.encode_images, dynamic=False)

    def vision_features(self, pixel_values: np.ndarray) -> np.ndarray:
        """(N, 3, H, W) float32 -> tower output (N, T, C) float32, before the projector."""
        return self._by_images(self.model.vision_features, pixel_values)

    def encode_images(self, pixel_values: np.ndarray) -> np.ndarray:
        """(N, 3, H, W) float32 -> (N, T, D) float32, after the projector."""
        return self._by_images(self._encode, pixel_values)

    def _by_images(self, function: Any, pixel_values: np.ndarray) -> np.ndarray:
        import torch

        if pixel_values.ndim != 4 or pixel_values.shape[0] == 0 or pixel_values.shape[1] != 3:
            raise ValueError(f"pixel_values have the shape {pixel_values.shape}; expected (N, 3, height, width) with N above 0")
        parts = []
        with self._inference():
            for start in range(0, len(pixel_values), _IMAGES_AT_ONCE):
                pixels = torch.from_numpy(np.ascontiguousarray(pixel_values[start : start + _IMAGES_AT_ONCE], np.float32))
                pixels = pixels.to(self.model.device, memory_format=torch.channels_last)
                parts.append(function(pixels).float().cpu())
        return torch.cat(parts).numpy()

    def logits(self, input_ids: np.ndarray, image_features: np.ndarray | None) -> np.ndarray:
        """Logits of every position.

        Args:
            input_ids: (1, S) int64.
            image_features: (placeholders, D), or None where there are none.

        Returns:
            (1, S, V) float32.
        """
        with self._inference():
            ids = self._tensor(np.asarray(input_ids, np.int64).reshape(1, -1))
            return self._numpy(self.model(ids, image_features=self._features([image_features])))

    def prefill(
        self, input_ids: Sequence[np.ndarray], image_features: Sequence[np.ndarray | None], cache: Any = None
    ) -> tuple[np.ndarray, Any]:
        """See `fastvlm.runtimes.Runtime`. Rows of unequal length are padded on the left."""
        lengths = [len(row) for row in input_ids]
        if not lengths or min(lengths) == 0:
            raise ValueError("prefill needs at least one row, and at least one id in each")
        if cache is not None and (len(lengths) != 1 or cache.batch_size != 1):
            raise ValueError(f"a cache of {cache.batch_size} rows cannot take {len(lengths)} more prompts; appending works for one row")
        columns = max(lengths)
        padded = np.zeros((len(lengths), columns), np.int64)
        is_real = np.zeros((len(lengths), columns), bool)
        for row, ids in enumerate(input_ids):
            padded[row, columns - len(ids) :] = ids
            is_real[row, columns - len(ids) :] = True
        # an image token as padding would ask for a feature: 0 is one only if the config says so
        padded[~is_real] = 1 if self.config.image_token_id == 0 else 0
        with self._inference():
            if cache is None:
                cache = self.model.new_cache(len(lengths), columns + _SPARE_COLUMNS)
            mask = None if is_real.all() else self._tensor(is_real)
            features = self._features(image_features)
            logits = self.model(self._tensor(padded), image_features=features, attention_mask=mask, cache=cache, last_only=True)
            return self._numpy(logits[:, -1]), cache

    def decode(self, tokens: np.ndarray, cache: Any) -> np.ndarray:
        with self._inference():
            ids = self._tensor(np.asarray(tokens, np.int64).reshape(-1, 1))
            return self._numpy(self.model(ids, cache=cache, last_only=True)[:, -1])

    def reorder(self, cache: Any, rows: np.ndarray) -> Any:
        with self._inference():
            cache.reorder(self._tensor(np.asarray(rows, np.int64)))
        return cache

    def trim(self, cache: Any, length: int) -> Any:
        try:
            with self._inference():
                cache.trim(length)
        except (RuntimeError, ValueError, AttributeError) as error:
            if not self.config.text_config.foreign:
                raise
            # transformers' cache of a model whose state has no columns, or whose window has moved on
            raise NotImplementedError(f"the cache of {self.config.text_config.model_type!r} cannot be trimmed") from error
        return cache

    def _features(self, rows: Sequence[np.ndarray | None]) -> "torch.Tensor | None":
        """The features of all rows, one after the other: the order in which their placeholders stand in the batch."""
        present = [row.reshape(-1, row.shape[-1]) for row in rows if row is not None and row.size]
        return self._tensor(np.concatenate(present)) if present else None

    def _tensor(self, array: np.ndarray) -> "torch.Tensor":
        import torch

        return torch.from_numpy(array).to(self.model.device)

    def _numpy(self, tensor: "torch.Tensor") -> np.ndarray:
        return tensor.float().cpu().numpy()

    def _inference(self) -> "torch.inference_mode":
        import torch

        return torch.inference_mode()
