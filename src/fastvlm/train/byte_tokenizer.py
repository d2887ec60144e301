"""A tokenizer of bytes, for models too small to spend parameters on a vocabulary.

256 ids for the bytes and a few special tokens: nothing is unknown, one printed character is one token, and a reader learns letters
instead of words. Written as tokenizer.json, which `tokenizers` and transformers read.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

PAD, END, SYSTEM, USER, ASSISTANT, IMAGE = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<image>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT, IMAGE)
IMAGE_TOKEN_ID = 256 + SPECIAL_TOKENS.index(IMAGE)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """The tokenizer; ids 0 to 255 are the bytes in the order of byte-level BPE's alphabet, then `SPECIAL_TOKENS`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def save_byte_tokenizer(folder: Path, model_max_length: int) -> None:
    """tokenizer.json and tokenizer_config.json, with the chat template."""
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "image_token": IMAGE,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT, IMAGE],
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
