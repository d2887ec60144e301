"""An open checkpoint: its config, its tensors under our names, its processor. Weights are read when they are asked for.

checkpoint = open_checkpoint("llava-fastvithd_0.5b_stage3.zip")
checkpoint.config, checkpoint.notes, checkpoint.describe()
model = checkpoint.load_model(dtype="float32", device="cpu")        # a FastVLMModel, ready for inference
"""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastvlm.checkpoint import llava_qwen2
from fastvlm.checkpoint.errors import CheckpointError, listed, nearest
from fastvlm.checkpoint.keymap import APPLE, NATIVE, KeyMap
from fastvlm.checkpoint.llava_qwen2 import Translated
from fastvlm.checkpoint.memory import available_memory_bytes, check_memory
from fastvlm.checkpoint.safetensors_file import TORCH_NAMES, TensorInfo
from fastvlm.checkpoint.source import RANDOM_WEIGHTS_FILE, Source, TensorStore
from fastvlm.checkpoint.tower import check_names_and_shapes
from fastvlm.config import ConfigError, FastVLMConfig

if TYPE_CHECKING:
    import torch

    from fastvlm.image_processing import ImageProcessor
    from fastvlm.model.fastvlm import FastVLMModel
    from fastvlm.processor import Processor

logger = logging.getLogger(__name__)
EMBEDDING = "language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
HEAD_BIAS = "lm_head.bias"
EQUAL_HEAD = "equal to the embedding, with which the config ties it"
UNEQUAL_HEAD = "the config ties the head to the embedding, as the reference does, and this stored head differs from it"
APPLE_LICENSE = "apple-amlr"
UNLIMITED_LENGTH = 1 << 30  # tokenizers without a limit write 10^30
PARTS = ("vision_tower", "multi_modal_projector", "language_model", "lm_head")
# how decoders that transformers builds name theirs
_EMBEDDING_NAME = re.compile(r"language_model\.(?:.*\.)?(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the model: our name, what the file says about it, and how to read it."""

    name: str
    info: TensorInfo
    shape: tuple[int, ...]  # the model's; has more rows than the stored one where the embedding was grown
    store: TensorStore

    def read(self) -> "torch.Tensor":
        """In the stored dtype, in memory of its own."""
        tensor = self.store.read(self.info.name)
        if tuple(tensor.shape) == self.shape:
            return tensor
        grown = tensor.new_zeros(self.shape)
        grown[: tensor.shape[0]] = tensor
        return grown


class Checkpoint:
    """Made by `open_checkpoint`.

    Attributes:
        label: path or hub id, for messages.
        layout: `fast_vlm` (transformers', our native one) or `llava_qwen2` (Apple's).
        config: sizes of the model.
        context_length: tokens of prompt and answer together, at most.
        dropped: stored name -> why the tensor is not used.
    """

    def __init__(self, source: Source, label: str | None = None):
        self.source, self.label = source, label or source.label
        if not source.has("config.json"):
            raise CheckpointError(
                f"{self.label} has no config.json; name the folder or zip of a checkpoint{nearest('config.json', source.names())}"
            )
        values = source.read_json("config.json")
        model_type = values.get("model_type")
        if not isinstance(model_type, str) or model_type not in LAYOUTS:
            raise CheckpointError(_unknown_model_type(source, model_type))
        self.layout = model_type
        self.store = TensorStore(source)
        self._keys: KeyMap = NATIVE if model_type == FastVLMConfig.MODEL_TYPE else APPLE
        self._check_layers(values)
        translated = _native(values, source) if self._keys is NATIVE else llava_qwen2.translate(values, source, self.store.tensors)
        self.config = translated.config
        self.image_options = translated.image
        self.context_length = min(translated.context_length, _tokenizer_limit(source))
        self.dropped: dict[str, str] = {}
        self._notes = translated.notes
        self._grow_vocab = translated.grow_vocab
        self._tensors = self._map_tensors()

    # Reading

    def tensors(self) -> Iterator[StoredTensor]:
        """Every tensor of the model, in the order of the files; nothing is read yet."""
        yield from self._tensors.values()

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def load_model(self, dtype: "str | torch.dtype" = "auto", device: "str | torch.device" = "cpu") -> "FastVLMModel":
        """The model in evaluation mode.

        Args:
            dtype: `float32`, `bfloat16`, `float16`, or `auto`: as stored where the device computes that fast, else float32. Under float16
                the vision tower stays in float32: its activations pass 60 000 and would overflow.
            device: of torch; `auto` takes CUDA or MPS when there is one.

        Raises:
            CheckpointError: a tensor is missing, left over or of another shape; the weights do not fit in memory.
        """
        import torch

        torch_device = _device(device)
        target = self._target_dtype(dtype, torch_device)
        model = self.empty_model()
        expected, aliases = stored_state(model), aliases_of(model)
        self._check(expected, aliases)
        self._check_memory(target, torch_device)
        state = {}
        for tensor in self.tensors():
            value = tensor.read()
            state[tensor.name] = value.to(torch_device, _dtype_of(tensor.name, value.dtype, target))
        for name, value in expected.items():
            if name not in state and name.endswith("num_batches_tracked"):
                state[name] = torch.zeros_like(value, device=torch_device)
        for name, original in aliases.items():
            state[name] = state[original]
        if model.foreign is not None:
            state = model.foreign.computed_state(state)
        model.load_state_dict(state, strict=True, assign=True)
        for name, original in aliases.items():  # assigned as two parameters; make them one again
            _set_parameter(model, name, model.get_parameter(original))
        if model.foreign is not None:
            model.to(torch_device)  # its tables, which are not stored
        return model.eval()

    def empty_model(self) -> "FastVLMModel":
        """The model with parameters on `meta`; buffers that are computed rather than stored are real."""
        import torch

        from fastvlm.model.fastvlm import FastVLMModel

        self._check_counts()
        try:
            if self.config.text_config.foreign:
                with _parameters_on_meta():
                    model = FastVLMModel(self.config)
                if HEAD_BIAS not in self._tensors:  # this layout's head has none, even where the family's own has one (Phi)
                    model.lm_head.bias = None
                return model
            with torch.device("meta"):
                model = FastVLMModel(self.config)
            frequencies = model.language_model.rotary.inv_freq(torch.zeros(1, 1, dtype=torch.long))
            if not bool(frequencies.isfinite().all()):
                raise ValueError("its rotary frequencies are not finite")
            return model
        except ConfigError as error:
            raise CheckpointError(f"{self.label}/config.json: {str(error)[:500]}") from error
        # Sizes that overflow, or for a foreign model whatever its class makes of a config that cannot be.
        except Exception as error:
            if not self.config.text_config.foreign and not isinstance(error, (ValueError, TypeError, ArithmeticError, RuntimeError)):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(f"{self.label}/config.json: no model can be built from it: {reason}") from error

    def processor(self) -> "Processor":
        """Tokenizer, prompts and pictures, as this checkpoint was trained."""
        from fastvlm.processor import Processor

        options: dict[str, Any] = {"image_processor": self.image_processor, "max_length": self.context_length}
        try:
            return Processor.from_folder(self.source.folder(), self.config, **options)
        except ValueError as error:
            raise CheckpointError(f"{self.label}: {str(error)[:500]}") from error

    @cached_property
    def image_processor(self) -> "ImageProcessor":
        """The recipe for pictures: from Apple's config.json, else from the files that transformers writes."""
        from fastvlm.image_processing import ImageProcessor

        if self.image_options is not None:
            return ImageProcessor(**self.image_options)
        settings = self.source.read_json("processor_config.json") if self.source.has("processor_config.json") else {}
        recipe = settings.get("image_processor")
        if not recipe and self.source.has("preprocessor_config.json"):
            recipe = self.source.read_json("preprocessor_config.json")
        if not recipe:
            logger.warning("%s has no preprocessor_config.json: pictures are prepared as for the released models", self.label)
        if recipe and not isinstance(recipe, dict):
            raise CheckpointError(f"{self.label}/processor_config.json: image_processor is a {type(recipe).__name__}; expected an object")
        try:
            return ImageProcessor.from_dict(recipe or {})
        except _MALFORMED as error:
            raise CheckpointError(f"{self.label}/{str(error)[:500]}") from error

    def check_tensors(self) -> None:
        """Compare every name and shape with the model that the config describes; `CheckpointError` on the first difference."""
        model = self.empty_model()
        self._check(stored_state(model), aliases_of(model))

    def close(self) -> None:
        self.store.close()

    # What it is

    @property
    def notes(self) -> list[str]:
        """What a user should know: a head that is not used, rows that were added."""
        head = next((stored for stored, reason in self._resolved_dropped.items() if reason == UNEQUAL_HEAD), None)
        unequal = [f"{head!r} is not used: {UNEQUAL_HEAD}"] if head else []
        random = ["the weights are random, for measuring speed: the answers mean nothing"] if self.has_random_weights else []
        return [*self._notes, *unequal, *random]

    @cached_property
    def _resolved_dropped(self) -> dict[str, str]:
        """`dropped` after comparing a stored head with the embedding, which reads both."""
        for stored, reason in self.dropped.items():
            if reason == EQUAL_HEAD:
                embedding = next((tensor.info.name for name, tensor in self._tensors.items() if _EMBEDDING_NAME.fullmatch(name)), None)
                if embedding is None or not self.store.same_bytes(stored, embedding):
                    self.dropped[stored] = UNEQUAL_HEAD
        return self.dropped

    @property
    def has_random_weights(self) -> bool:
        """It says of itself that it was made to measure speed; its answers mean nothing."""
        return self.source.has(RANDOM_WEIGHTS_FILE)

    @cached_property
    def license_text(self) -> str | None:
        """The first licence file, the weights' own before the code's."""
        for name in self.source.license_files():
            return self.source.read_bytes(name).decode("utf-8", errors="replace")
        return None

    @cached_property
    def license_name(self) -> str | None:
        """As the model card or the licence file names it; Apple's own layout is under Apple's licence unless the card says otherwise."""
        if self.source.has("README.md"):
            card = self.source.read_bytes("README.md").decode("utf-8", errors="replace")
            head = card.split("---", 2)[1] if card.startswith("---") and card.count("---") >= 2 else ""
            for field in ("license_name", "license"):
                if (match := re.search(rf"^{field}:[ \t]*(\S.*?)\s*$", head, re.MULTILINE)) and match[1].strip("\"'") != "other":
                    return match[1].strip("\"'")
        if "Apple Machine Learning Research Model" in (self.license_text or "") or self.layout == llava_qwen2.MODEL_TYPE:
            return APPLE_LICENSE
        first_line = next((line.strip("# \t") for line in (self.license_text or "").splitlines() if line.strip("# \t")), None)
        return first_line[:100] if first_line else None

    @property
    def stored_dtypes(self) -> list[str]:
        """Of the floating-point tensors, the most frequent by bytes first."""
        sizes: dict[str, int] = {}
        for tensor in self._tensors.values():
            if tensor.info.dtype != "I64":
                name = TORCH_NAMES[tensor.info.dtype]
                sizes[name] = sizes.get(name, 0) + tensor.info.nbytes
        return sorted(sizes, key=lambda name: -sizes[name])

    def num_parameters(self) -> dict[str, int]:
        """Parameters of each part, as used: a tied head counts once, with the language model."""
        counts = dict.fromkeys(PARTS, 0)
        for tensor in self._tensors.values():
            if not tensor.name.endswith(_BUFFERS):
                counts[tensor.name.split(".", 1)[0]] += tensor.info.numel
        return counts

    def describe(self) -> dict[str, Any]:
        """What `fastvlm info` prints; plain values, ready for JSON. Reads no weights but a head that may equal the embedding."""
        config, text = self.config, self.config.text_config
        parameters = self.num_parameters()
        files = self.store.files.values()
        return {
            "name": self.label,
            "layout": self.layout,
            "language_model": {
                "model_type": text.model_type,
                "hidden_size": text.hidden_size,
                "num_hidden_layers": text.num_hidden_layers,
                "num_attention_heads": text.num_attention_heads,
                "num_key_value_heads": text.num_key_value_heads,
                "intermediate_size": text.intermediate_size,
                "vocab_size": text.vocab_size,
            },
            "vision_tower": {
                "layers": list(config.vision_config.layers),
                "embed_dims": list(config.vision_config.embed_dims),
                "hidden_size": config.vision_config.hidden_size,
                "form": "inference" if config.vision_config.inference_mode else "training",
            },
            "image": self._describe_image(),
            "image_token_id": config.image_token_id,
            "context_length": self.context_length,
            "parameters": {**{name: count for name, count in parameters.items() if count}, "total": sum(parameters.values())},
            "dtype": self.stored_dtypes,
            "weights_bytes": sum(file.size for file in files),
            "weight_files": len(files),
            "head": "tied to the embedding" if config.tie_word_embeddings else "its own",
            "license": self.license_name,
            "license_files": self.source.license_files(),
            "dropped": [f"{name}: {reason}" for name, reason in self._resolved_dropped.items()],
            "notes": self.notes,
        }

    def _describe_image(self) -> dict[str, Any]:
        recipe = self.image_processor
        return {"size": recipe.size, "mode": recipe.mode, "tokens": recipe.num_tokens(recipe.size, recipe.size)}

    # How it is checked

    def _map_tensors(self) -> dict[str, StoredTensor]:
        mapped: dict[str, TensorInfo] = {}
        unknown = []
        for stored, info in self.store.tensors.items():
            ours = self._keys.ours(stored)
            reason = self._keys.dropped(stored)
            if reason is not None:
                self.dropped[stored] = reason
            elif ours is None:
                unknown.append(stored)
            elif ours in mapped:
                raise CheckpointError(f"{self.label}: {stored!r} and {mapped[ours].name!r} are two names of one tensor")
            else:
                mapped[ours] = info
        if unknown:
            known = [self._keys.stored(name) or name for name in mapped]
            raise CheckpointError(
                f"{self.label} has tensors that the layout {self.layout!r} has no place for: {listed(unknown)}" + nearest(unknown[0], known)
            )
        self._settle_head(mapped)
        rows = self.config.text_config.vocab_size
        return {name: StoredTensor(name, info, self._model_shape(name, info, rows), self.store) for name, info in mapped.items()}

    def _check_layers(self, values: dict[str, Any]) -> None:
        """Refuse a config of more layers than there are tensors before anything is made for each: a wild number would take for ever."""
        text = values.get("text_config")
        most = len(self.store.tensors)
        for part in (values, text if isinstance(text, dict) else {}):
            count = part.get("num_hidden_layers")
            if isinstance(count, int) and count > most:
                raise CheckpointError(f"{self.label}/config.json: num_hidden_layers is {count}, but only {most} tensors are stored")

    def _check_counts(self) -> None:
        """The same for the tower's layers and the embedding's rows."""
        text, vision = self.config.text_config, self.config.vision_config
        if sum(vision.layers) > len(self._tensors):
            stored = len(self._tensors)
            raise CheckpointError(
                f"{self.label}/config.json: the vision tower has {sum(vision.layers)} layers, {stored} tensors are stored"
            )
        largest = max((math.prod(tensor.shape) for tensor in self._tensors.values()), default=0)
        if text.vocab_size * text.hidden_size > largest:
            raise CheckpointError(
                f"{self.label} has no embedding of the size that config.json names, {text.vocab_size} x {text.hidden_size}"
                + (f"; it has {list(self._tensors[EMBEDDING].shape)}" if EMBEDDING in self._tensors else "")
            )

    def _settle_head(self, mapped: dict[str, TensorInfo]) -> None:
        head = mapped.get(HEAD)
        if self.config.tie_word_embeddings and head is not None:
            if self.config.text_config.foreign or EMBEDDING in mapped:
                self.dropped[head.name] = EQUAL_HEAD  # `notes` compares the two when somebody asks
            else:
                mapped[EMBEDDING] = head  # a saver that keeps one of two shared tensors may keep this one
            del mapped[HEAD]

    def _model_shape(self, name: str, info: TensorInfo, rows: int) -> tuple[int, ...]:
        if self._grow_vocab and name in (EMBEDDING, HEAD) and len(info.shape) == 2 and info.shape[0] == rows - self._grow_vocab:
            return (rows, info.shape[1])
        return info.shape

    def _check(self, expected: "dict[str, torch.Tensor]", aliases: dict[str, str]) -> None:
        shapes = {name: tuple(value.shape) for name, value in expected.items() if name not in aliases}
        found = {name: (tensor.info.name, tensor.shape) for name, tensor in self._tensors.items()}
        if HEAD in shapes and HEAD not in found:
            raise CheckpointError(
                f"{self.label} has no tensor {self._stored_name(HEAD)!r}, expected with shape {list(shapes[HEAD])}; if the head is the "
                "embedding, config.json must say tie_word_embeddings: true"
            )
        check_names_and_shapes(shapes, found, self.label, self._stored_name)

    def _stored_name(self, name: str) -> str:
        return self._keys.stored(name) or name

    def _target_dtype(self, dtype: "str | torch.dtype", device: "torch.device") -> "torch.dtype":
        import torch

        name = str(dtype).removeprefix("torch.")
        if name == "auto":
            name = (self.stored_dtypes or ["float32"])[0]
            if not _is_fast(name, device):
                name = "float32"
        if name not in _DTYPE_BYTES:
            raise CheckpointError(f"dtype is {name!r}; supported: auto, {', '.join(_DTYPE_BYTES)}")
        return getattr(torch, name)

    def _check_memory(self, target: "torch.dtype", device: "torch.device") -> None:
        import torch

        needed, largest = 0, 0
        for tensor in self._tensors.values():
            source = getattr(torch, TORCH_NAMES[tensor.info.dtype])
            converted = tensor.info.numel * _dtype_of(tensor.name, source, target).itemsize
            needed += converted
            if device.type != "cpu" or converted != tensor.info.nbytes:
                largest = max(largest, tensor.info.nbytes)
        what = f"{self.label} in {str(target).removeprefix('torch.')}"
        advice = "; choose dtype bfloat16 or a smaller model" if target == torch.float32 else "; choose a smaller model"
        if device.type == "cuda":
            check_memory(needed, torch.cuda.mem_get_info(device)[0], what + f" on {device}", advice)
            needed = 0
        check_memory(needed + largest, available_memory_bytes(), what, advice)


LAYOUTS = (FastVLMConfig.MODEL_TYPE, llava_qwen2.MODEL_TYPE)


# What reading a config raises where a value has another type than any writer gives it (a number for a list, text for an object).
_MALFORMED = (ValueError, TypeError, AttributeError, ArithmeticError, LookupError)


def _unknown_model_type(source: Source, model_type: Any) -> str:
    where = f"{source.label}/config.json"
    if model_type is None:
        return f"{where} has no 'model_type'; expected {' or '.join(map(repr, LAYOUTS))}"
    return (
        f"{where}: model_type is {str(model_type)[:80]!r}; supported: 'fast_vlm' (transformers' layout) and 'llava_qwen2' (Apple's). "
        "A language model without a vision tower is no FastVLM checkpoint"
    )


def _native(values: dict[str, Any], source: Source) -> Translated:
    where = f"{source.label}/config.json"
    if values.get("quantization_config"):
        raise CheckpointError(f"{where}: the weights are quantised; load the unquantised checkpoint and quantise that")
    try:
        config = FastVLMConfig.from_dict({name: value for name, value in values.items() if name != "quantization_config"})
    except ConfigError as error:
        raise CheckpointError(f"{where}: {str(error).removeprefix('config.json: ')[:1000]}") from error
    except _MALFORMED as error:
        raise CheckpointError(f"{where} is malformed: {str(error).splitlines()[0][:200]}") from error
    return Translated(config, config.text_config.max_position_embeddings)


def _tokenizer_limit(source: Source) -> int:
    """`model_max_length` of the tokenizer, where the trainers wrote the length that they cut at."""
    if not source.has("tokenizer_config.json"):
        return UNLIMITED_LENGTH
    limit = source.read_json("tokenizer_config.json").get("model_max_length")
    return limit if isinstance(limit, int) and not isinstance(limit, bool) and 0 < limit < UNLIMITED_LENGTH else UNLIMITED_LENGTH


def _dtype_of(name: str, stored: "torch.dtype", target: "torch.dtype") -> "torch.dtype":
    """The dtype in which a tensor is kept: counters as they are, the tower never in float16."""
    import torch

    if not stored.is_floating_point:
        return stored
    return torch.float32 if target == torch.float16 and name.startswith("vision_tower.") else target


def _device(device: "str | torch.device") -> "torch.device":
    import torch

    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise CheckpointError(f"device is {str(device)!r}; expected cpu, cuda, cuda:1, mps or auto") from error


def _is_fast(dtype: str, device: "torch.device") -> bool:
    """Whether the device has this type in hardware; float16 on a CPU is emulated step by step."""
    from fastvlm.model.precision import has_fast_bfloat16

    if dtype == "float32" or device.type not in ("cpu", "cuda"):
        return True
    return has_fast_bfloat16(device) if dtype == "bfloat16" else device.type == "cuda"


def stored_state(model: "FastVLMModel") -> "dict[str, torch.Tensor]":
    """The tensors of a model that a checkpoint holds, by our names; some foreign language models are stored otherwise than computed."""
    return model.state_dict() if model.foreign is None else model.foreign.stored_state(model.state_dict())


def aliases_of(model: "torch.nn.Module") -> dict[str, str]:
    """Second names of shared parameters -> first names (a foreign model's head that is its embedding)."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return aliases


def _set_parameter(model: "torch.nn.Module", name: str, parameter: "torch.nn.Parameter") -> None:
    module_name, _, parameter_name = name.rpartition(".")
    setattr(model.get_submodule(module_name), parameter_name, parameter)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While it lasts, modules register their parameters on `meta`; buffers are made as usual.

    `torch.device("meta")` would lose the tables that foreign models compute when they are built and do not store.
    """
    import torch
    from torch import nn

    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
    try:
        with torch.no_grad():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
