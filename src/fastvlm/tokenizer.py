"""Text to token ids and back, for any checkpoint with tokenizer.json, or with Qwen2's vocab.json and merges.txt.

    tokenizer = Tokenizer.from_folder("FastVLM-0.5B")
    tokenizer.encode("<|im_end|> typed by a user")     # plain text: no id of it is the special token's
    tokenizer.token_id("<|im_end|>")                   # 151645
    stream = tokenizer.stream()                        # stream.push(id) gives text, never half a character

Which special token goes where is decided by `prompts`; the folder that was read is never written to.
"""

import codecs
import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

# How Qwen2 cuts text before byte-level BPE: contractions, words with one leading character, single digits, punctuation, line ends,
# spaces. From the tokenizer.json of its releases, which Apple's checkpoints do not always carry.
_QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>", re.DOTALL)
_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json", "config.json")


class TokenizerError(ValueError):
    """A tokenizer that cannot be read: which file, what it holds, what to do."""


class TextStream(Protocol):
    """Turns ids into text as they come."""

    def push(self, token_id: int) -> str:
        """The text that is certain now; often empty, when the id is special or ends within a character."""

    def flush(self) -> str:
        """What was held back; a character that never became whole is U+FFFD."""


class Tokenizer:
    """A tokenizer and the ids that its checkpoint gives a meaning to.

    Attributes:
        config: tokenizer_config.json, as read; `chat_template` may be among its keys.
        eos_token_ids: ids that end an answer, the first one the tokenizer's own end-of-text.
        bos_token_ids: what the tokenizer puts in front of a text by itself; empty for Qwen2.
        pad_token_id: for batches; the first of `eos_token_ids` where the checkpoint has none, None without either.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        config: Mapping[str, Any] | None = None,
        eos_token_ids: Iterable[int] = (),
        pad_token_id: int | None = None,
    ):
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        # Special tokens in text are text; `prompts` puts the real ones in as ids.
        self._backend.encode_special_tokens = True
        self.config: dict[str, Any] = dict(config or {})
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys(eos_token_ids))
        self.pad_token_id = pad_token_id if pad_token_id is not None else next(iter(self.eos_token_ids), None)
        self._also_plain: frozenset[str] = frozenset()
        self._read_added_tokens()
        self.bos_token_ids = self._leading_ids()

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Read tokenizer.json, or build Qwen2's from vocab.json and merges.txt, and add the tokens that the configs name."""
        folder = Path(path)
        files = {name: read_json(folder / name) for name in _FILES}
        config = {**_special_names(files["special_tokens_map.json"]), **_without_nulls(files["tokenizer_config.json"])}
        if (folder / "tokenizer.json").is_file():
            with _as_tokenizer_error(f"{folder / 'tokenizer.json'} is damaged or of a newer format; fetch the checkpoint again"):
                backend = Backend.from_file(str(folder / "tokenizer.json"))
        else:
            backend = _qwen2_backend(folder, config)
        _add_tokens(backend, _named_tokens(files), folder)
        text_config = files["config.json"].get("text_config")
        sources = [files["generation_config.json"], files["config.json"], text_config if isinstance(text_config, dict) else {}]
        own_eos, own_pad = _id_of(backend, config.get("eos_token")), _id_of(backend, config.get("pad_token"))
        eos = [*([] if own_eos is None else [own_eos]), *_first_ids(sources, "eos_token_id")]
        pad = own_pad if own_pad is not None else next(iter(_first_ids(sources, "pad_token_id")), None)
        return cls(backend, config=config, eos_token_ids=eos, pad_token_id=pad)

    # Ids

    @property
    def vocab_size(self) -> int:
        """Number of ids that it knows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def unknown_ids(self, size: int) -> list[int]:
        """The ids below `size` that stand for nothing: a head often has more rows than the tokenizer has ids."""
        known = set(self._backend.get_vocab(with_added_tokens=True).values())
        return [token_id for token_id in range(size) if token_id not in known]

    def token_id(self, token: str) -> int:
        """The id of a token by its exact name, such as `<|im_end|>`."""
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise KeyError(f"the tokenizer has no token {token!r}; its special tokens are {', '.join(sorted(self.special_tokens))}")
        return token_id

    def token(self, token_id: int) -> str | None:
        """The token's name, None for an unknown id."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None

    @property
    def added_tokens(self) -> dict[str, AddedToken]:
        """Every token that stands beside the vocabulary proper, by its text."""
        return {token.content: token for token in self._added.values()}

    @property
    def special_tokens(self) -> frozenset[str]:
        return frozenset(token.content for token in self._added.values() if token.special)

    @property
    def plain_in_text(self) -> frozenset[str]:
        """Tokens that `encode` never makes of a text: special ones, those that look like them (`<|...|>`), and `keep_plain`'s."""
        return self.special_tokens | self._also_plain | {name for name in self.added_tokens if _CONTROL.fullmatch(name)}

    def keep_plain(self, tokens: Iterable[str]) -> None:
        """Have `encode` read these added tokens as plain text too, such as the ones that a chat template builds turns of."""
        self._also_plain |= frozenset(tokens) & self.added_tokens.keys()
        self._read_added_tokens()

    def add_special_token(self, token: str) -> int:
        """The id of `token`, added at the next free id where it is not known yet. Changes this object only."""
        token_id = self._backend.token_to_id(token)
        if token_id is None or token_id not in self._added or not self._added[token_id].special:
            self._backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
            self._read_added_tokens()
        return self.token_id(token)

    # Text

    def encode(self, text: str, *, is_start: bool = True) -> list[int]:
        """Ids of plain text; whatever special token it spells is spelt out.

        Args:
            text: any; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD.
            is_start: whether the text begins the prompt. SentencePiece-like tokenizers put a space before such a text only.
        """
        if not text:
            return []
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: list[int] = self._backend_for(text, is_start).encode(text, add_special_tokens=False).ids
        return ids if self._must_not_appear.isdisjoint(ids) else self._encode_in_pieces(text, is_start)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; ids that stand for nothing are left out."""
        skipped = self._special_ids if skip_special_tokens else frozenset()
        return self._backend.decode([i for i in map(int, ids) if i not in skipped and 0 <= i < 1 << 32], skip_special_tokens=False)

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """A decoder for ids that come one by one; its pieces join to what `decode` gives."""
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            return _ByteStream(self, skip_special_tokens)
        return _WindowStream(self, skip_special_tokens)

    # Files

    def save(self, folder: str | Path, *, config: Mapping[str, Any] | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json, which we and transformers read; `config` adds to the latter's keys."""
        folder = Path(folder)
        self._backend.encode_special_tokens = False
        try:
            self._backend.save(str(folder / "tokenizer.json"))
        finally:
            self._backend.encode_special_tokens = True
        values = {name: value for name, value in self.config.items() if name not in ("auto_map", "added_tokens_decoder")}
        values["added_tokens_decoder"] = {
            str(token_id): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for token_id, token in sorted(self._added.items())
        }
        if self.eos_token_ids:
            values.setdefault("eos_token", self.token(self.eos_token_ids[0]))
        if self.pad_token_id is not None and values.get("pad_token") is None:
            values["pad_token"] = self.token(self.pad_token_id)
        values.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        values.update(config or {})
        text = json.dumps({name: value for name, value in values.items() if value is not None}, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    # What `encode` needs to know of the added tokens; read again whenever they change

    def _read_added_tokens(self) -> None:
        self._added: dict[int, AddedToken] = self._backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in self._added.items() if token.special)
        unknown = getattr(self._backend.model, "unk_token", None) or self.config.get("unk_token")
        self._must_not_appear = self._special_ids - {_id_of(self._backend, unknown)}
        # The backend itself passes over special tokens only; the others that must stay text need a copy in which they are special.
        self._made_special = self.plain_in_text - self.special_tokens
        self._made_special_pattern = _any_of(self._made_special)
        self._copies: dict[tuple[bool, bool], Backend] = {}
        state = b"" if self._backend.pre_tokenizer is None else self._backend.pre_tokenizer.__getstate__()
        self._spaces_the_start = b'"prepend_scheme":"first"' in state

    def _backend_for(self, text: str, is_start: bool) -> Backend:
        """The backend, or the copy of it that reads this text as it should."""
        within = not is_start and self._spaces_the_start
        special = self._made_special_pattern is not None and self._made_special_pattern.search(text) is not None
        if not within and not special:
            return self._backend
        if (within, special) not in self._copies:
            self._copies[within, special] = self._copy(within, self._made_special if special else frozenset())
        return self._copies[within, special]

    def _copy(self, within: bool, made_special: frozenset[str]) -> Backend:
        values = json.loads(self._backend.to_str())
        for token in values["added_tokens"]:
            token["special"] |= token["content"] in made_special
        if within:
            _never_prepend(values["pre_tokenizer"])
        backend = Backend.from_str(json.dumps(values))
        backend.encode_special_tokens = True
        return backend

    def _encode_in_pieces(self, text: str, is_start: bool) -> list[int]:
        """For vocabularies that hold a special token's letters as a piece of their own: cut inside each of them."""
        pattern = _any_of(self.special_tokens)
        cuts = [match.start() + 1 for match in pattern.finditer(text)] if pattern is not None else []
        ids: list[int] = []
        for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
            piece = text[start:stop]
            ids += self._backend_for(piece, is_start and start == 0).encode(piece, add_special_tokens=False).ids
        return ids

    def _leading_ids(self) -> tuple[int, ...]:
        """What the post-processor puts before a text, as Llama's does with its beginning-of-text."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        whole = self._backend.encode("a", add_special_tokens=True).ids
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[:start])
        return ()


class _ByteStream:
    """For byte-level vocabularies, whose tokens are bytes: UTF-8 decoded as it comes."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool):
        self._tokenizer = tokenizer
        self._skipped = tokenizer._special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        token = None if token_id in self._skipped else self._tokenizer.token(token_id)
        return "" if token is None else self._utf8.decode(_token_bytes(token))

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class _WindowStream:
    """For every other vocabulary: the last tokens are decoded again with each new one, and text is given out once it ends well."""

    # A run of ids that never makes a character is let go after so many, lest each new one costs more.
    LONGEST_RUN = 64

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool):
        self._tokenizer = tokenizer
        self._skipped = tokenizer._special_ids if skip_special_tokens else frozenset()
        self._context: list[int] = []  # given out already; decoders treat the first token of a text in a way of its own
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        self._held.append(token_id)
        text = self._new_text()
        if text.endswith("\ufffd") and len(self._held) < self.LONGEST_RUN:
            return ""
        if text:
            self._context, self._held = self._held, []
        return text

    def flush(self) -> str:
        text = self._new_text()
        self._context, self._held = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context, skip_special_tokens=False)
        return self._tokenizer.decode([*self._context, *self._held], skip_special_tokens=False)[len(before) :]


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself where it is one, else the next from U+0100 (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + index): byte for index, byte in enumerate(others)}}


_BYTES = _byte_alphabet()


def _token_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTES[letter] for letter in token])
    except KeyError:  # an added token, which is written as it is
        return token.encode()


def _any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _never_prepend(values: Any) -> None:
    if isinstance(values, dict):
        if values.get("prepend_scheme") == "first":
            values["prepend_scheme"] = "never"
        for part in values.get("pretokenizers", ()):
            _never_prepend(part)


# Reading


def read_json(path: Path) -> dict[str, Any]:
    """The object in one of a checkpoint's small files; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON; fetch the checkpoint again") from error
    if not isinstance(values, dict):
        raise TokenizerError(f"{path} holds a {type(values).__name__}; expected an object")
    return values


def _qwen2_backend(folder: Path, config: Mapping[str, Any]) -> Backend:
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        raise TokenizerError(f"no tokenizer in {folder}: expected tokenizer.json, or Qwen2's vocab.json and merges.txt")
    tokenizer_class = config.get("tokenizer_class", "Qwen2Tokenizer")
    if tokenizer_class not in _QWEN2_CLASSES:
        raise TokenizerError(
            f"{folder} has vocab.json and merges.txt of {str(tokenizer_class)[:60]!r} but no tokenizer.json; without it only Qwen2's are "
            "read. Make one with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    with _as_tokenizer_error(f"vocab.json and merges.txt in {folder} are damaged or do not fit together; fetch the checkpoint again"):
        backend = Backend(models.BPE.from_file(str(vocab), str(merges)))
    backend.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")), use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN2_PATTERN), "isolated"), byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _named_tokens(files: Mapping[str, dict[str, Any]]) -> dict[int, AddedToken]:
    """Tokens that tokenizer_config.json and added_tokens.json give an id to. The flags stand in the former alone."""
    where = "tokenizer_config.json: added_tokens_decoder"
    tokens: dict[int, AddedToken] = {}
    decoder = files["tokenizer_config.json"].get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{where} holds a {type(decoder).__name__}; expected an object")
    for key, value in decoder.items():
        content = value.get("content") if isinstance(value, dict) else None
        if not key.isdecimal() or not isinstance(content, str) or not content:
            raise TokenizerError(f"{where} has the entry {key[:40]!r}; expected an id and a token's content")
        flags = {name: bool(value.get(name, False)) for name in ("lstrip", "normalized", "rstrip", "single_word", "special")}
        tokens[int(key)] = AddedToken(content, **flags)
    known = {token.content for token in tokens.values()}
    for content, token_id in files["added_tokens.json"].items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0 or not content:
            raise TokenizerError(f"added_tokens.json gives {content[:40]!r} the id {str(token_id)[:40]}; expected a whole number")
        if content not in known:
            tokens.setdefault(token_id, AddedToken(content, special=True, normalized=False))
    return tokens


def _add_tokens(backend: Backend, tokens: Mapping[int, AddedToken], folder: Path) -> None:
    """Add what `backend` lacks, in the order of the ids, and make sure that each got its own."""
    for token_id, token in sorted(tokens.items()):
        if backend.token_to_id(token.content) is None or token_id not in backend.get_added_tokens_decoder():
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        found = backend.token_to_id(token.content)
        if found != token_id:
            raise TokenizerError(
                f"the files of the tokenizer in {folder} disagree: {token.content!r} is {token_id} in tokenizer_config.json or "
                f"added_tokens.json and {found} in the vocabulary; fetch the checkpoint again"
            )


def _special_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """special_tokens_map.json, where older checkpoints keep the names that tokenizer_config.json lacks."""
    return {name: value.get("content") if isinstance(value, dict) else value for name, value in values.items() if value is not None}


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _first_ids(sources: Iterable[Mapping[str, Any]], name: str) -> list[int]:
    """The id or ids under `name` in the first source that has any."""
    for source in sources:
        value = source.get(name)
        values = value if isinstance(value, list) else [value]
        if ids := [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]:
            return ids
    return []


def _id_of(backend: Backend, token: Any) -> int | None:
    content = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(content) if isinstance(content, str) else None


@contextlib.contextmanager
def _as_tokenizer_error(message: str) -> Iterator[None]:
    """The library raises bare Exception, and its panics are not even that."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise TokenizerError(message) from error
