"""What a checkpoint is, as dataclasses whose field names are those of transformers' `fast_vlm` config.json.

    config = FastVLMConfig.from_dict(json.loads(Path("config.json").read_text()))

A field that changes the result is read or refused; a field that cannot is in one of the `IGNORED` sets, by name; anything else is an
error, because an option that vanishes silently is a wrong answer later. Imports the standard library only.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

PATCH_SIZE = 64  # input pixels per side of one image token: the tower's total stride (paper section 3.2)
TIMM_ARCHITECTURE = "fastvit_mci3"

DECODER_FAMILIES = ("qwen2", "qwen3", "llama", "mistral")

# Written by transformers into every config; none of them changes what a forward pass in inference computes.
_IGNORED_EVERYWHERE = frozenset(
    "_name_or_path _attn_implementation_autoset add_cross_attention architectures attention_dropout auto_map bad_words_ids "
    "begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty "
    "do_sample dtype early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task "
    "forced_bos_token_id forced_eos_token_id id2label initializer_range is_decoder is_encoder_decoder label2id label_names "
    "length_penalty max_length max_sequence_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences "
    "output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type pruned_heads "
    "remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params "
    "temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version "
    "transformers.js_config typical_p use_bfloat16 use_cache".split()
)


class ConfigError(ValueError):
    """A config.json that we cannot run: says which field, what it holds and what is supported."""


def _require(values: dict[str, Any], name: str, where: str) -> Any:
    if values.get(name) is None:
        raise ConfigError(f"{where} has no {name!r}, which is needed to build the model")
    return values[name]


def _positive_int(values: dict[str, Any], name: str, where: str) -> int:
    value = _require(values, name, where)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigError(f"{where}: {name} is {value!r}; expected a positive whole number")
    return value


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(f"{where}: {name} is {value!r}; expected a positive number")
    return float(value)


def _flag(values: dict[str, Any], name: str, default: bool, where: str) -> bool:
    value = values.get(name, default)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {name} is {value!r}; expected true or false")
    return value


def _refuse_unknown(values: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(values) - known - _IGNORED_EVERYWHERE)
    if unknown:
        raise ConfigError(f"{where} has fields that this version does not know: {', '.join(unknown)}")


def _only(values: dict[str, Any], name: str, allowed: tuple[Any, ...], where: str) -> None:
    """Refuse a field that we read only to know that it holds what we compute."""
    if name in values and values[name] not in allowed:
        raise ConfigError(f"{where}: {name} is {values[name]!r}; supported: {', '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class VisionConfig:
    """FastViTHD's sizes (paper section 3.2, appendix B). The defaults are the released tower, 125 M parameters."""

    layers: tuple[int, ...] = (2, 12, 24, 4, 2)  # blocks per stage; RepMixer in the first three, attention in the last two
    embed_dims: tuple[int, ...] = (96, 192, 384, 768, 1536)
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4, 4)
    inference_mode: bool = True  # fused convolutions; False is the multi-branch training form

    def __post_init__(self) -> None:
        where = "vision_config.model_args"
        for name in ("layers", "embed_dims", "mlp_ratios"):
            values = getattr(self, name)
            if len(values) != 5 or any(isinstance(v, bool) or not isinstance(v, (int, float)) or v <= 0 for v in values):
                raise ConfigError(f"{where}: {name} is {list(values)!r}; expected five positive numbers, one a stage")
        for dim, next_dim in zip(self.embed_dims, self.embed_dims[1:], strict=False):
            if next_dim % dim:
                raise ConfigError(f"{where}: embed_dims {list(self.embed_dims)}: {next_dim} is no multiple of {dim}")
        for dim in self.embed_dims[3:]:
            if dim % 32:
                raise ConfigError(f"{where}: embed_dims {list(self.embed_dims)}: attention stages need multiples of 32, not {dim}")

    @property
    def hidden_size(self) -> int:
        """Channels of one image token: `final_conv` doubles the last stage's width."""
        return 2 * self.embed_dims[-1]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VisionConfig":
        where = "vision_config"
        _only(values, "model_type", ("timm_wrapper",), where)
        _only(values, "architecture", (TIMM_ARCHITECTURE,), where)
        # Read by transformers' classification head, which the language model does not use.
        known = {"model_type", "architecture", "do_pooling", "global_pool", "hidden_size", "model_args", "num_classes", "num_labels"}
        _refuse_unknown(values, known | {"pretrained_cfg"}, where)
        model_args = dict(values.get("model_args") or {})
        known_args = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(set(model_args) - known_args):
            raise ConfigError(f"{where}.model_args has fields that this version does not know: {', '.join(unknown)}")
        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in model_args.items()}
        for name in ("layers", "embed_dims", "mlp_ratios"):
            if name in sizes and not isinstance(sizes[name], tuple):
                raise ConfigError(f"{where}.model_args: {name} is {sizes[name]!r}; expected five positive numbers")
        config = cls(**sizes)
        if values.get("hidden_size", config.hidden_size) != config.hidden_size:
            raise ConfigError(
                f"{where}: hidden_size is {values['hidden_size']}, but embed_dims {list(config.embed_dims)} give {config.hidden_size}"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """As transformers' `timm_wrapper` config; the sizes stand there even when they are the defaults."""
        return {
            "model_type": "timm_wrapper",
            "architecture": TIMM_ARCHITECTURE,
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "model_args": {
                "inference_mode": self.inference_mode,
                "layers": list(self.layers),
                "embed_dims": list(self.embed_dims),
                "mlp_ratios": list(self.mlp_ratios),
            },
        }


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding, named as transformers' `rope_parameters`; only the fields of `rope_type` are used."""

    rope_theta: float = 10000.0
    rope_type: str = "default"  # default, linear, dynamic, yarn, llama3
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn

    TYPES = ("default", "linear", "dynamic", "yarn", "llama3")

    @classmethod
    def from_text_config(cls, values: dict[str, Any], where: str) -> "RopeConfig":
        """From `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before)."""
        parameters = dict(values.get("rope_parameters") or {})
        parameters.update(values.get("rope_scaling") or {})
        if "type" in parameters:  # the spelling before 4.43
            parameters.setdefault("rope_type", parameters["type"])
            del parameters["type"]
        if values.get("rope_theta") is not None:
            parameters.setdefault("rope_theta", values["rope_theta"])
        rope_type = parameters.setdefault("rope_type", "default")
        if rope_type not in cls.TYPES:  # before its fields, which nobody knows then
            raise ConfigError(f"{where}: rope_type {str(rope_type)[:80]!r} is not supported; supported: {', '.join(cls.TYPES)}")
        _only(parameters, "partial_rotary_factor", (None, 1, 1.0), f"{where}.rope_parameters")
        parameters.pop("partial_rotary_factor", None)
        known = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(set(parameters) - known):
            raise ConfigError(f"{where}.rope_parameters has fields that this version does not know: {', '.join(unknown)}")
        rope = cls(**parameters)
        _number(rope.rope_theta, "rope_theta", where)
        if rope.rope_type != "default":
            _number(rope.factor, "rope_parameters.factor", where)
        if rope.rope_type == "llama3" and rope.original_max_position_embeddings is None:
            raise ConfigError(f"{where}: rope_type 'llama3' needs original_max_position_embeddings")
        return rope

    def to_dict(self) -> dict[str, Any]:
        used = {"rope_theta", "rope_type"}
        if self.rope_type != "default":
            used |= {"factor", "original_max_position_embeddings"}
        if self.rope_type == "llama3":
            used |= {"low_freq_factor", "high_freq_factor"}
        if self.rope_type == "yarn":
            used |= {"beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k in used and v is not None}


@dataclass(frozen=True)
class TextConfig:
    """A decoder of the families in `DECODER_FAMILIES`, or (`foreign`) any other language model, built by transformers from `raw`."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    intermediate_size: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_word_embeddings: bool = False
    qkv_bias: bool = False  # Qwen2 always; Qwen3 and Llama by `attention_bias`
    o_bias: bool = False  # Qwen3 and Llama by `attention_bias`
    mlp_bias: bool = False  # Llama
    qk_norm: bool = False  # Qwen3
    sliding_windows: tuple[int | None, ...] = ()  # per layer: keys seen, itself included; None sees all
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    raw: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def foreign(self) -> bool:
        """Built and run by transformers, not by our decoder."""
        return self.model_type not in DECODER_FAMILIES

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TextConfig":
        where = "text_config"
        raw = values
        model_type = _require(values, "model_type", where)
        if not isinstance(model_type, str):
            raise ConfigError(f"{where}: model_type is {model_type!r}; expected a name such as 'qwen2'")
        foreign = model_type not in DECODER_FAMILIES
        if foreign:
            # state-space models have no heads, and no longest context
            values = {"num_attention_heads": 1, "max_position_embeddings": _ENDLESS, **_with_usual_names(values)}
        num_heads = _positive_int(values, "num_attention_heads", where)
        hidden_size = _positive_int(values, "hidden_size", where)
        num_layers = _positive_int(values, "num_hidden_layers", where)
        kv_heads = values.get("num_key_value_heads")
        eos = values.get("eos_token_id")
        common: dict[str, Any] = dict(
            model_type=model_type,
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            vocab_size=_positive_int(values, "vocab_size", where),
            num_key_value_heads=num_heads if kv_heads is None else _positive_int(values, "num_key_value_heads", where),
            tie_word_embeddings=_flag(values, "tie_word_embeddings", False, where),
            bos_token_id=values.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            raw=raw,
        )
        if foreign:  # transformers checks the rest when it builds the model
            return cls(
                **common,
                intermediate_size=values.get("intermediate_size") or 4 * hidden_size,
                head_dim=values.get("head_dim") or hidden_size // num_heads,
                max_position_embeddings=_positive_int(values, "max_position_embeddings", where),
            )
        known = set(
            "model_type hidden_size num_hidden_layers num_attention_heads vocab_size num_key_value_heads tie_word_embeddings "
            "bos_token_id eos_token_id intermediate_size head_dim max_position_embeddings rms_norm_eps rope_theta rope_scaling "
            "rope_parameters hidden_act attention_bias mlp_bias sliding_window use_sliding_window max_window_layers layer_types "
            "rope_interleaved use_mrope is_llama_config".split()
        )
        _refuse_unknown(values, known, where)
        _only(values, "hidden_act", ("silu",), where)
        _only(values, "rope_interleaved", (False, None), where)  # of SmolLM2's config
        _only(values, "use_mrope", (False, None), where)  # of Qwen2.5's
        if hidden_size % num_heads and values.get("head_dim") is None:
            raise ConfigError(f"{where}: hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}")
        if num_heads % common["num_key_value_heads"]:
            raise ConfigError(f"{where}: num_attention_heads {num_heads} is no multiple of num_key_value_heads {kv_heads}")
        default_head_dim = 128 if model_type == "qwen3" else hidden_size // num_heads  # Qwen3's class default
        head_dim = default_head_dim if values.get("head_dim") is None else _positive_int(values, "head_dim", where)
        if head_dim % 2:
            raise ConfigError(f"{where}: head_dim is {head_dim}; rotary embedding needs an even number")
        attention_bias = _flag(values, "attention_bias", False, where)
        if model_type == "mistral" and attention_bias:
            raise ConfigError(f"{where}: attention_bias is true, which Mistral does not have")
        return cls(
            **common,
            intermediate_size=_positive_int(values, "intermediate_size", where),
            head_dim=head_dim,
            max_position_embeddings=_positive_int(values, "max_position_embeddings", where),
            rms_norm_eps=_number(values.get("rms_norm_eps", 1e-6), "rms_norm_eps", where),
            rope=RopeConfig.from_text_config(values, where),
            qkv_bias=model_type == "qwen2" or attention_bias,
            o_bias=model_type != "qwen2" and attention_bias,
            mlp_bias=model_type == "llama" and _flag(values, "mlp_bias", False, where),
            qk_norm=model_type == "qwen3",
            sliding_windows=_sliding_windows(values, model_type, num_layers, where),
        )

    def to_dict(self) -> dict[str, Any]:
        """transformers' config of this family. What we read comes from the fields, the rest from `raw`."""
        values = {k: v for k, v in self.raw.items() if k not in ("rope_theta", "rope_scaling")}
        eos = self.eos_token_id
        values.update(
            model_type=self.model_type,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tie_word_embeddings,
            eos_token_id=list(eos) if isinstance(eos, tuple) else eos,
        )
        if self.foreign:
            return {**self.raw, **values}
        names = "hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size max_position_embeddings"
        values.update({name: getattr(self, name) for name in names.split()})
        values.update(rms_norm_eps=self.rms_norm_eps, hidden_act="silu", rope_parameters=self.rope.to_dict())
        values["rope_theta"] = self.rope.rope_theta  # for readers older than transformers 5
        return values


_ENDLESS = 1 << 20  # tokens of context where a config states none

# What other families call the sizes that we need to know (GPT-2, BLOOM, MPT, ...): transformers' `attribute_map`s, without importing it.
_OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
    "intermediate_size": ("n_inner", "ffn_dim"),
}


def _with_usual_names(values: dict[str, Any]) -> dict[str, Any]:
    found = {usual: values[name] for usual, names in _OTHER_NAMES.items() for name in reversed(names) if values.get(name) is not None}
    return {**found, **{name: value for name, value in values.items() if value is not None}}


def _sliding_windows(values: dict[str, Any], model_type: str, num_layers: int, where: str) -> tuple[int | None, ...]:
    """The window of each layer, by the rules of the family's config class."""
    window = values.get("sliding_window")
    if model_type in ("qwen2", "qwen3"):
        window = window if _flag(values, "use_sliding_window", False, where) else None
    elif model_type == "llama":
        window = None
    if window is not None:
        window = _positive_int(values, "sliding_window", where)
    layer_types = values.get("layer_types")
    if layer_types is not None:
        if len(layer_types) != num_layers or set(layer_types) - {"full_attention", "sliding_attention"}:
            raise ConfigError(f"{where}: layer_types must name full_attention or sliding_attention for each of {num_layers} layers")
        return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    first = values.get("max_window_layers", 28) if model_type in ("qwen2", "qwen3") else 0
    return tuple(window if index >= first else None for index in range(num_layers))


@dataclass(frozen=True)
class FastVLMConfig:
    """A whole checkpoint: tower, projector, language model, and the id that image features replace."""

    vision_config: VisionConfig
    text_config: TextConfig
    image_token_id: int
    tie_word_embeddings: bool = False

    MODEL_TYPE = "fast_vlm"

    def __post_init__(self) -> None:
        if not 0 <= self.image_token_id < self.text_config.vocab_size:
            raise ConfigError(f"image_token_id {self.image_token_id} is outside the vocabulary of {self.text_config.vocab_size} ids")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FastVLMConfig":
        """From a native config.json; foreign layouts are translated first, by `fastvlm.checkpoint`."""
        where = "config.json"
        if values.get("model_type") != cls.MODEL_TYPE:
            raise ConfigError(f"{where}: model_type is {values.get('model_type')!r}; expected {cls.MODEL_TYPE!r}")
        known = set(
            "model_type vision_config text_config image_token_id image_token_index tie_word_embeddings image_seq_length "
            "projector_hidden_act vision_feature_select_strategy vision_feature_layer multimodal_projector_bias bos_token_id "
            "eos_token_id vocab_size ignore_index".split()
        )
        _refuse_unknown(values, known, where)
        _only(values, "projector_hidden_act", ("gelu",), where)
        _only(values, "vision_feature_select_strategy", ("full",), where)
        _only(values, "vision_feature_layer", (-1,), where)
        _only(values, "multimodal_projector_bias", (True,), where)
        text_values = _require(values, "text_config", where)
        vision_values = _require(values, "vision_config", where)
        if not isinstance(text_values, dict) or not isinstance(vision_values, dict):
            raise ConfigError(f"{where}: text_config and vision_config must be objects")
        image_token_id = values.get("image_token_index", values.get("image_token_id"))
        if isinstance(image_token_id, bool) or not isinstance(image_token_id, int):
            raise ConfigError(f"{where}: image_token_index is {image_token_id!r}; expected a token id")
        text_config = TextConfig.from_dict(text_values)
        # transformers ties when either level says so (FastVlmConfig.__post_init__)
        tie = _flag(values, "tie_word_embeddings", False, where) or text_config.tie_word_embeddings
        return cls(
            vision_config=VisionConfig.from_dict(vision_values),
            text_config=dataclasses.replace(text_config, tie_word_embeddings=tie),
            image_token_id=image_token_id,
            tie_word_embeddings=tie,
        )

    def to_dict(self) -> dict[str, Any]:
        """The native config.json, which transformers' `FastVlmConfig` reads too."""
        return {
            "architectures": ["FastVlmForConditionalGeneration"],
            "model_type": self.MODEL_TYPE,
            "image_token_index": self.image_token_id,
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": True,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "tie_word_embeddings": self.tie_word_embeddings,
            "vision_config": self.vision_config.to_dict(),
            "text_config": self.text_config.to_dict(),
        }
