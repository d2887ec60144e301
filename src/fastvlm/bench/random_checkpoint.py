"""Checkpoints of the released shapes with random weights: speed does not depend on what the weights are.

    folder = random_checkpoint("0.5b")          # written at the first use, kept in the cache folder
    vlm = fastvlm.load(folder)

Tensors are made one at a time while the file is written, so a checkpoint of 15 GB needs memory for one of them. The file
`RANDOM_WEIGHTS` in the folder marks it. The tokenizer has as many entries as the released one, made by code.
"""

import hashlib
import itertools
import math
import os
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.checkpoint.source import RANDOM_WEIGHTS_FILE, cache_folder
from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig

if TYPE_CHECKING:
    import torch

    from fastvlm.processor import Processor
    from fastvlm.tokenizer import Tokenizer

FORMAT = 3  # part of the folder's name: count it up when the content changes
_NAMED_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# The released checkpoints' language models (their config.json), and the embedded model's sizes (recipes/nano/nano.yaml).
_QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
_NANO = {**_QWEN2, "max_position_embeddings": 4096, "rope_theta": 1e4, "vocab_size": 320}
_7B = {**_QWEN2, "vocab_size": 152064, "tie_word_embeddings": False}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "nano": {**_NANO, **_sizes(384, 768, 6, 6, 6)},
    "0.5b": {**_QWEN2, **_sizes(896, 4864, 24, 14, 2)},
    "1.5b": {**_QWEN2, **_sizes(1536, 8960, 28, 12, 2)},
    "7b": {**_7B, **_sizes(3584, 18944, 28, 28, 4)},
}
_TOWERS = {
    "nano": VisionConfig(layers=(1, 2, 6, 3, 3), embed_dims=(32, 64, 192, 384, 384), mlp_ratios=(3, 3, 4, 3, 2)),
}
_IMAGE_SIZES = {"nano": 1280}
# Ids that the tokenizer knows. Rows of the head beyond them exist, in the released models too, and are never produced.
_VOCABULARIES = {"nano": 256 + len(_NAMED_TOKENS)}
_RELEASED_VOCABULARY = 151_646


def random_checkpoint(
    shape: str, folder: str | Path | None = None, *, dtype: str = "bfloat16", on_start: Callable[[], None] | None = None
) -> Path:
    """The folder of a checkpoint in transformers' layout, with the sizes of `shape` (of `SHAPES`) and random weights.

    Args:
        folder: where to write it; None is the cache folder, where one that is there already is taken.
        dtype: of the weights; the released ones are bfloat16.
        on_start: called when it has to be written, which takes seconds for the smallest and minutes for the largest.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; available: {', '.join(SHAPES)}")
    target = cache_folder() / "random" / f"{shape}-{dtype}-{FORMAT}" if folder is None else Path(folder)
    if (target / RANDOM_WEIGHTS_FILE).is_file():
        return target
    from fastvlm.checkpoint.save import save_generated

    if on_start is not None:
        on_start()
    # The mark is what makes a folder count, so it goes in before the folder gets its name.
    unmarked = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        save_generated(_config(shape), random_tensor, _processor(shape), unmarked, dtype=dtype)
        (unmarked / RANDOM_WEIGHTS_FILE).write_text(
            f"Random weights in the shape of FastVLM {shape}, written by `fastvlm bench`. For measuring speed: the answers mean nothing.\n"
        )
        if target.is_dir():
            target.rmdir()  # empty, or somebody's: then this refuses
        os.rename(unmarked, target)
    finally:
        shutil.rmtree(unmarked, ignore_errors=True)
    return target


def random_tensor(name: str, shape: tuple[int, ...]) -> "torch.Tensor":
    """Values drawn from a generator seeded by the name, of a scale at which activations stay finite and differ from token to token."""
    import torch

    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little"))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):  # every norm
        return torch.empty(shape).uniform_(0.8, 1.2, generator=generator)
    if name.endswith("gamma"):  # layer scales
        return torch.empty(shape).uniform_(0.1, 0.3, generator=generator)
    if name.endswith(("bias", "running_mean")):
        return torch.empty(shape).normal_(0, 0.05, generator=generator)
    std = 0.5 if "embed_tokens" in name or "lm_head" in name else 1.2 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).normal_(0, std, generator=generator)


def _config(shape: str) -> FastVLMConfig:
    named = {token: _vocabulary(shape) - len(_NAMED_TOKENS) + index for index, token in enumerate(_NAMED_TOKENS)}
    text = TextConfig.from_dict({**SHAPES[shape], "eos_token_id": named["<|im_end|>"], "pad_token_id": named["<|endoftext|>"]})
    return FastVLMConfig(_TOWERS.get(shape, VisionConfig()), text, _vocabulary(shape), text.tie_word_embeddings)


def _vocabulary(shape: str) -> int:
    """Ids without the image token's, which is the next one."""
    return _VOCABULARIES.get(shape, _RELEASED_VOCABULARY)


def _processor(shape: str) -> "Processor":
    from fastvlm.image_processing import ImageProcessor
    from fastvlm.processor import Processor

    return Processor(_tokenizer(_vocabulary(shape)), ImageProcessor(size=_IMAGE_SIZES.get(shape, 1024)))


def _tokenizer(vocab_size: int) -> "Tokenizer":
    """A byte-level BPE tokenizer with `vocab_size` ids: bytes, pairs and quadruples of a blank and small letters, Qwen2's named tokens."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    from fastvlm.tokenizer import Tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    num_merges = vocab_size - len(letters) - len(_NAMED_TOKENS)
    blank = "\u0120"  # as byte-level BPE writes it
    pairs = list(itertools.product([blank, *string.ascii_lowercase], string.ascii_lowercase))
    joined = [first + second for first, second in pairs]
    merges = pairs + list(itertools.product(joined, (pair for pair in joined if blank not in pair)))
    merges = merges[:num_merges]
    vocab = {token: index for index, token in enumerate([*letters, *(first + second for first, second in merges)])}
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _NAMED_TOKENS])
    assert backend.get_vocab_size() == vocab_size
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    end, pad = (vocab_size - len(_NAMED_TOKENS) + _NAMED_TOKENS.index(config[name]) for name in ("eos_token", "pad_token"))
    return Tokenizer(backend, config=config, eos_token_ids=[end], pad_token_id=pad)
