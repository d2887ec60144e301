"""Language models in GGUF, llama.cpp's format, as weights, config and tokenizer of our decoder.

    model = read_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    decoder, head_weight = model.load_decoder()                     # a Decoder in float32, and (V, D)
    model.text_config, model.chat_template
    tokenizer = model.tokenizer()

Reads the architectures `llama` (Llama, Mistral, SmolLM2, Vicuna: llama.cpp has one name for them), `qwen2` and `qwen3`, in every
quantisation that the `gguf` package can undo. What is not understood (experts, other scalings, other tokenizers) is refused by name.
Needs the extra `gguf`; the names are those of https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm.checkpoint.errors import CheckpointError, listed
from fastvlm.checkpoint.keymap import KeyMap
from fastvlm.checkpoint.memory import available_memory_bytes, check_memory
from fastvlm.checkpoint.tower import check_names_and_shapes
from fastvlm.config import ConfigError, TextConfig

if TYPE_CHECKING:
    import tokenizers
    import torch

    from fastvlm.model.decoder import Decoder
    from fastvlm.tokenizer import Tokenizer

ARCHITECTURES = ("llama", "qwen2", "qwen3")
HEAD = "lm_head.weight"
_IN_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
KEYS = KeyMap(
    [
        ("token_embd.weight", "embed_tokens.weight"),
        ("output_norm.weight", "norm.weight"),
        ("output.weight", HEAD),
        *((f"blk.{{n}}.{stored}.{{rest}}", f"layers.{{n}}.{ours}.{{rest}}") for stored, ours in _IN_A_LAYER.items()),
    ],
    [("rope_freqs.weight", "Llama 3's scaling of the rotary frequencies, which the config expresses")],
)
# How text is cut before the merges, by the name that llama.cpp gives each family's way.
_DIGITS_OF_THREE = r"\p{N}{1,3}"
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
_PRE_TOKENIZERS = ("default", "gpt-2", "smollm", "qwen2", "llama-bpe")
_CONTROL, _USER_DEFINED = 3, 4  # token_type
_LLAMA3_CONTEXT, _LLAMA3_LOW, _LLAMA3_HIGH = 8192, 1.0, 4.0  # what every release of Llama 3.1 to 3.3 has


@dataclass
class GGUFTensor:
    """One tensor under the decoder's name; `read` undoes the quantisation."""

    name: str
    stored_name: str
    shape: tuple[int, ...]
    quantization: str  # such as Q4_1
    raw: Any
    num_heads: int | None  # of a query or key projection whose rows llama.cpp has reordered

    def read(self) -> np.ndarray:
        """float32, in transformers' convention."""
        from gguf.quants import dequantize

        try:
            value = np.asarray(dequantize(self.raw.data, self.raw.tensor_type), dtype=np.float32).reshape(self.shape)
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(
                f"tensor {self.stored_name!r} is stored as {self.quantization}, which cannot be undone: {error}"
            ) from error
        if self.num_heads is not None:
            # llama.cpp pairs neighbouring rows in its rotation, transformers row i with row i + head_dim / 2
            pairs = value.reshape(self.num_heads, -1, 2, *self.shape[1:])
            value = pairs.swapaxes(1, 2).reshape(self.shape)
        return np.require(value, requirements=["C", "W"])  # unquantised data is a read-only view of the file


class GGUFModel:
    """Made by `read_gguf`.

    Attributes:
        text_config: for `Decoder`.
        chat_template: the Jinja text, or None.
        license_name: as the file names it, or None.
    """

    def __init__(self, path: Path, fields: dict[str, Any], tensors: list[Any]):
        self.path, self._fields = path, fields
        self.architecture = self._text("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise CheckpointError(f"{path}: architecture is {self.architecture!r}; supported: {', '.join(ARCHITECTURES)}")
        self._raw = {tensor.name: tensor for tensor in tensors}
        if len(self._raw) != len(tensors):
            raise CheckpointError(f"{path} holds a tensor twice; download it again")
        try:
            self.text_config = self._config()
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from error
        self._tensors = self._map_tensors()
        self.chat_template = self._text("tokenizer.chat_template", required=False)
        self.license_name = self._text("general.license", required=False)

    def tensors(self) -> Iterator[GGUFTensor]:
        """Every tensor of the decoder, and `lm_head.weight` where it is not the embedding."""
        yield from self._tensors.values()

    def load_decoder(self, dtype: "str | torch.dtype" = "float32") -> "tuple[Decoder, torch.Tensor]":
        """The decoder in evaluation mode, and the weight of its head (V, D): the embedding's own where the two are tied."""
        import torch

        from fastvlm.model.decoder import Decoder

        name = str(dtype).removeprefix("torch.")
        if name not in ("float32", "bfloat16", "float16"):
            raise CheckpointError(f"dtype is {name!r}; supported: float32, bfloat16, float16")
        target: torch.dtype = getattr(torch, name)
        needed = sum(int(np.prod(tensor.shape)) for tensor in self.tensors()) * target.itemsize
        check_memory(needed, available_memory_bytes(), f"{self.path} in {name}")
        state = {tensor.name: torch.from_numpy(tensor.read()).to(target) for tensor in self.tensors()}
        head = state.pop(HEAD, state["embed_tokens.weight"])
        with torch.device("meta"):
            decoder = Decoder(self.text_config)
        decoder.load_state_dict(state, strict=True, assign=True)
        return decoder.eval(), decoder.embed_tokens.weight if self.text_config.tie_word_embeddings else head

    def tokenizer(self) -> "Tokenizer":
        """The file's tokenizer; ids and special tokens as the file numbers them."""
        from fastvlm.tokenizer import Tokenizer

        with tempfile.TemporaryDirectory(prefix="fastvlm-") as folder:
            self.save_tokenizer(Path(folder))
            return Tokenizer.from_folder(Path(folder))

    def save_tokenizer(self, folder: Path) -> None:
        """tokenizer.json and tokenizer_config.json, which transformers reads too."""
        self.build_tokenizer().save(str(folder / "tokenizer.json"))
        names = self._strings("tokenizer.ggml.tokens")
        values: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.text_config.max_position_embeddings,
            "add_bos_token": bool(self._fields.get("tokenizer.ggml.add_bos_token", False)),
        }
        for field, role in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
            index = self._integer(f"tokenizer.ggml.{field}_token_id", required=False)
            if index is not None and index < len(names):
                values[f"{role}_token"] = names[index]
        if self.chat_template is not None:
            values["chat_template"] = self.chat_template
        (folder / "tokenizer_config.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def build_tokenizer(self) -> "tokenizers.Tokenizer":
        """A `tokenizers.Tokenizer` from the file's tokens, merges and name of pre-tokenizer."""
        kind = self._text("tokenizer.ggml.model")
        if kind == "gpt2":
            tokenizer = self._byte_level_tokenizer()
        elif kind == "llama":
            tokenizer = self._sentencepiece_tokenizer()
        else:
            raise CheckpointError(f"{self.path}: tokenizer.ggml.model is {kind!r}; supported: gpt2 (byte-level), llama (SentencePiece)")
        self._add_special_tokens(tokenizer)
        return tokenizer

    # The config

    def _config(self) -> TextConfig:
        name = self.architecture
        heads = self._integer(f"{name}.attention.head_count")
        hidden_size = self._integer(f"{name}.embedding_length")
        embedding = self._raw.get("token_embd.weight")
        if embedding is None:
            raise CheckpointError(f"{self.path} has no tensor 'token_embd.weight'; it is no language model, or a part of one")
        rows = _shape(embedding)[0]
        values: dict[str, Any] = {
            "model_type": name,
            "hidden_size": hidden_size,
            "num_hidden_layers": self._integer(f"{name}.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._integer(f"{name}.attention.head_count_kv", required=False) or heads,
            "intermediate_size": self._integer(f"{name}.feed_forward_length"),
            "max_position_embeddings": self._integer(f"{name}.context_length"),
            "rms_norm_eps": self._number(f"{name}.attention.layer_norm_rms_epsilon", 1e-5),
            "vocab_size": rows,
            "tie_word_embeddings": "output.weight" not in self._raw,
            "bos_token_id": self._integer("tokenizer.ggml.bos_token_id", required=False),
            "eos_token_id": self._integer("tokenizer.ggml.eos_token_id", required=False),
        }
        head_dim = self._integer(f"{name}.attention.key_length", required=False)
        if head_dim is not None:
            if self._integer(f"{name}.attention.value_length", required=False) not in (None, head_dim):
                raise CheckpointError(f"{self.path}: keys and values have different lengths, which the decoder does not support")
            values["head_dim"] = head_dim
        elif heads:
            values["head_dim"] = head_dim = hidden_size // heads
        rotated = self._integer(f"{name}.rope.dimension_count", required=False)
        if rotated not in (None, head_dim):
            raise CheckpointError(f"{self.path}: {rotated} of {head_dim} dimensions are rotated; the decoder rotates all or none")
        window = self._integer(f"{name}.attention.sliding_window", required=False)
        if window:
            if name != "llama":
                raise CheckpointError(f"{self.path}: a sliding window of {window} in architecture {name!r} is not supported")
            values |= {"model_type": "mistral", "sliding_window": window}
        if name == "llama":
            has_bias = "blk.0.attn_q.bias" in self._raw
            if has_bias != ("blk.0.attn_output.bias" in self._raw):
                raise CheckpointError(f"{self.path}: attention has biases in some projections only, which the decoder does not support")
            if not window:
                values |= {"attention_bias": has_bias, "mlp_bias": "blk.0.ffn_up.bias" in self._raw}
        values["rope_parameters"] = self._rope(values)
        return TextConfig.from_dict(values)

    def _rope(self, values: dict[str, Any]) -> dict[str, Any]:
        name = self.architecture
        rope: dict[str, Any] = {"rope_theta": self._number(f"{name}.rope.freq_base", 10000.0), "rope_type": "default"}
        scaling = self._text(f"{name}.rope.scaling.type", required=False) or "none"
        factor = self._number(f"{name}.rope.scaling.factor", 1.0)
        if scaling in ("linear", "yarn") and factor != 1.0:
            rope |= {"rope_type": scaling, "factor": factor}
            original = self._integer(f"{name}.rope.scaling.original_context_length", required=False)
            if scaling == "yarn" and original is not None:
                rope["original_max_position_embeddings"] = original
        elif scaling not in ("none", "linear", "yarn"):
            raise CheckpointError(f"{self.path}: rope scaling {scaling!r} is not supported; supported: none, linear, yarn, Llama 3's")
        if "rope_freqs.weight" in self._raw:
            rope = self._llama3_rope(rope, values["head_dim"])
        return rope

    def _llama3_rope(self, rope: dict[str, Any], head_dim: int) -> dict[str, Any]:
        """llama.cpp stores what each frequency is divided by; the largest divisor is the config's factor."""
        import torch

        from fastvlm.model.rope import RotaryEmbedding

        stored = np.asarray(self._raw["rope_freqs.weight"].data, dtype=np.float32).reshape(-1)
        if stored.shape != (head_dim // 2,) or not np.isfinite(stored).all():
            raise CheckpointError(f"{self.path}: rope_freqs.weight has shape {list(stored.shape)}; expected [{head_dim // 2}]")
        factor = float(stored.max())
        if factor == 1.0:
            return rope
        scaled = {
            **rope, "rope_type": "llama3", "factor": factor, "original_max_position_embeddings": _LLAMA3_CONTEXT,
            "low_freq_factor": _LLAMA3_LOW, "high_freq_factor": _LLAMA3_HIGH,
        }  # fmt: skip
        sizes = dict(hidden_size=head_dim, num_hidden_layers=1, num_attention_heads=1, intermediate_size=1, vocab_size=1)
        common = {"model_type": "llama", "max_position_embeddings": 1, **sizes}
        position = torch.zeros(1, 1, dtype=torch.long)
        plain, divided = (
            RotaryEmbedding(TextConfig.from_dict({**common, "rope_parameters": parameters})).inv_freq(position)
            for parameters in (rope, scaled)
        )
        if rope["rope_type"] != "default" or not np.allclose((plain / divided).numpy(), stored, rtol=1e-3):
            raise CheckpointError(f"{self.path}: rope_freqs.weight is none of Llama 3's scalings (a context of 8192 stretched by a factor)")
        return scaled

    # The tensors

    def _map_tensors(self) -> dict[str, GGUFTensor]:
        from fastvlm.model.decoder import Decoder

        mapped, unknown = {}, []
        config = self.text_config
        is_reordered = self.architecture == "llama"
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        for stored, raw in self._raw.items():
            ours = KEYS.ours(stored)
            if ours is None:
                if KEYS.dropped(stored) is None:
                    unknown.append(stored)
                continue
            part = stored.split(".")[-2]
            num_heads = heads.get(part) if is_reordered else None
            mapped[ours] = GGUFTensor(ours, stored, _shape(raw), raw.tensor_type.name, raw, num_heads)
        if unknown:
            raise CheckpointError(f"{self.path} has tensors that the decoder has no place for: {listed(unknown)}")
        import torch

        with torch.device("meta"):
            expected = {name: tuple(value.shape) for name, value in Decoder(config).state_dict().items()}
        if not config.tie_word_embeddings:
            expected[HEAD] = (config.vocab_size, config.hidden_size)
        found = {name: (tensor.stored_name, tensor.shape) for name, tensor in mapped.items()}
        check_names_and_shapes(expected, found, str(self.path), lambda name: KEYS.stored(name) or name)
        return mapped

    # The tokenizer

    def _byte_level_tokenizer(self) -> "tokenizers.Tokenizer":
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        name = self._text("tokenizer.ggml.pre", required=False) or "default"
        if name not in _PRE_TOKENIZERS:
            raise CheckpointError(f"{self.path}: tokenizer.ggml.pre is {name!r}; supported: {', '.join(_PRE_TOKENIZERS)}")
        merges = [_merge(line, self.path) for line in self._strings("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(self._vocab(), merges, ignore_merges=name == "llama-bpe"))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("default", "gpt-2", "smollm"))
        first: list[Any] = []
        if name == "smollm":
            first = [pre_tokenizers.Digits(individual_digits=True)]
        elif name in ("qwen2", "llama-bpe"):
            pattern = _SPLIT.format(digits=r"\p{N}" if name == "qwen2" else _DIGITS_OF_THREE)
            first = [pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)]
        if name == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _sentencepiece_tokenizer(self) -> "tokenizers.Tokenizer":
        """SentencePiece's BPE: two neighbours merge when together they are a token, the one with the best score first."""
        from tokenizers import Tokenizer, decoders, models, normalizers

        names, vocab = self._strings("tokenizer.ggml.tokens"), self._vocab()
        scores = self._fields.get("tokenizer.ggml.scores")
        if not isinstance(scores, list) or len(scores) != len(names):
            raise CheckpointError(f"{self.path}: tokenizer.ggml.scores must hold one number for each of {len(names)} tokens")
        merges = []
        for token in sorted(vocab, key=lambda token: (-scores[vocab[token]], vocab[token])):
            pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in vocab and token[cut:] in vocab]
            merges.extend(sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]])))
        unknown = self._integer("tokenizer.ggml.unknown_token_id", required=False)
        unk_token = names[unknown] if unknown is not None and unknown < len(names) else None
        tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unk_token, fuse_unk=True, byte_fallback=True))
        adds_prefix = bool(self._fields.get("tokenizer.ggml.add_space_prefix", True))
        replace_spaces = normalizers.Replace(" ", "▁")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace_spaces]) if adds_prefix else replace_spaces
        steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if adds_prefix else steps)
        return tokenizer

    def _add_special_tokens(self, tokenizer: "tokenizers.Tokenizer") -> None:
        from tokenizers import AddedToken

        names, types = self._strings("tokenizer.ggml.tokens"), self._fields.get("tokenizer.ggml.token_type")
        types = types if isinstance(types, list) and len(types) == len(names) else [1] * len(names)
        kinds = {name: kind for name, kind in zip(names, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)}
        tokenizer.add_tokens([AddedToken(name, special=kind == _CONTROL, normalized=False) for name, kind in kinds.items()])

    def _vocab(self) -> dict[str, int]:
        names = self._strings("tokenizer.ggml.tokens")
        vocab = {name: index for index, name in enumerate(names)}
        if len(vocab) != len(names) or len(names) > self.text_config.vocab_size:
            raise CheckpointError(
                f"{self.path}: {len(names)} tokens, {len(vocab)} of them different, for {self.text_config.vocab_size} rows"
            )
        return vocab

    # Fields

    def _field(self, name: str, kinds: tuple[type, ...], wanted: str, required: bool) -> Any:
        value = self._fields.get(name)
        if value is None and not required:
            return None
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {name} is {str(value)[:60]!r}; expected {wanted}")
        return value

    def _text(self, name: str, required: bool = True) -> str | None:
        value: str | None = self._field(name, (str,), "text", required)
        return value

    def _integer(self, name: str, required: bool = True) -> Any:
        return self._field(name, (int,), "a whole number", required)

    def _number(self, name: str, default: float) -> float:
        value = self._field(name, (int, float), "a number", required=False)
        return default if value is None else float(value)

    def _strings(self, name: str) -> list[str]:
        value = self._fields.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise CheckpointError(f"{self.path}: {name} is no list of texts; the file has no tokenizer that can be read")
        return value


def read_gguf(path: str | Path) -> GGUFModel:
    """Open a GGUF file; weights are read when they are asked for.

    Raises:
        CheckpointError: no GGUF, damaged, or a model that the decoder cannot run.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is no GGUF file: it begins with {magic!r}")
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError("reading GGUF needs the package gguf: pip install 'fastvlm[gguf]'") from error
    try:
        with np.errstate(all="ignore"):
            reader = GGUFReader(path)
            fields = {name: field.contents() for name, field in reader.fields.items()}
    # What the package raises for bytes that make no sense depends on where they stand; none of it says more than "damaged".
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, OSError, MemoryError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{path} is damaged or of an unknown version of GGUF ({reason}); download it again") from error
    return GGUFModel(path, fields, list(reader.tensors))


def _shape(raw: Any) -> tuple[int, ...]:
    return tuple(int(side) for side in reversed(raw.shape.tolist()))


def _merge(line: str, path: Path) -> tuple[str, str]:
    first, _, second = line.partition(" ")
    if not first or not second:
        raise CheckpointError(f"{path}: {line[:60]!r} is no merge of two tokens")
    return first, second
