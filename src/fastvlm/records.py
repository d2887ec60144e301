"""Records of data sets as messages: LLaVA's conversations and whatever else holds pictures with questions or captions.

    for start, end in entry_spans(Path("conversations.json")):      # where each entry lies; the file may be larger than memory
        messages = record_messages(read_json_record(data[start:end]), images=Path("pictures"))

Used by training and evaluation. A record holds pictures (`image` or `images`: path, bytes, {"bytes": ..., "path": ...} or a PIL image) and
one of
  conversations   LLaVA's turns, {"from": "human" | "gpt" | "system", "value": text with <image> marks}
  messages        turns of a chat, {"role": ..., "content": text or parts}
  texts           {"user": ..., "assistant": ...} turns
  question, answer    (or `answers`, of which the first is taken)
  caption         what the picture shows
Marks keep their place; where a text has none, the pictures come first.
"""

import json
import mmap
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

IMAGE_MARK = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TEXT_FIELDS = ("conversations", "messages", "texts", "question", "caption")
_ASKING = (
    "{}", "Please {}", "Can you {}", "Could you {}", "I would like you to {}", "In your own words, {}", "Look at the picture and {}",
    "Take a careful look and {}", "For someone who cannot see it, {}", "As exactly as you can, {}", "Briefly or at length, {}",
    "Without guessing, {}", "In plain words, {}", "Be so kind and {}", "Your task: {}",
)  # fmt: skip
_WANTED = (
    "describe this picture", "say what is in this photo", "tell me what you see here", "write a caption for this image",
    "explain what is shown", "summarise the contents of the picture", "name what can be seen", "give an account of this scene",
    "describe the scene in detail", "tell what is going on here", "list what appears in the image", "put this picture into words",
    "describe everything that is visible", "say what this is a picture of", "report what the photograph shows",
    "describe the objects and where they are", "tell me about this image", "write down what you notice",
    "characterise the picture", "describe what the camera saw",
)  # fmt: skip
CAPTION_PROMPTS = tuple(way.format(wanted)[:1].upper() + way.format(wanted)[1:] + "." for way in _ASKING for wanted in _WANTED)
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_LINE = re.compile(rb"[^\n]*\S[^\n]*")


class RecordError(ValueError):
    """A file of records that cannot be opened."""


class BrokenSample(ValueError):
    """One record that cannot be used; says why. Who reads it adds its name."""


def entry_spans(path: Path) -> np.ndarray:
    """(entries, 2) int64: first byte and end of each entry.

    Raises:
        RecordError: no such file, or it is no list.
    """
    if not path.is_file():
        raise RecordError(f"there is no file {path}")
    if not path.stat().st_size:
        raise RecordError(f"{path} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if path.suffix == ".jsonl":
            spans = [match.span() for match in _LINE.finditer(text)]
        else:
            spans = _elements(text, path)
    if not spans:
        raise RecordError(f"{path}: expected a list of entries with `conversations`")
    return np.array(spans, np.int64)


def _elements(text: mmap.mmap, path: Path) -> list[tuple[int, int]]:
    """Spans of the objects in a JSON list, which may be larger than memory."""
    if not re.match(rb"(?:\xef\xbb\xbf)?\s*\[", text):
        raise RecordError(f"{path}: expected a list of entries with `conversations`")
    spans, depth, start = [], 0, 0
    for match in _STRING_OR_BRACKET.finditer(text):
        symbol = text[match.start()]
        if symbol in b"{[":
            if depth == 1:
                start = match.start()
            depth += 1
        elif symbol in b"}]":
            depth -= 1
            if depth == 1:
                spans.append((start, match.end()))
    if depth:
        raise RecordError(f"{path}: not JSON: the list does not end, was the file cut?")
    return spans


def read_json_record(text: bytes) -> dict[str, Any]:
    """One object; `BrokenSample` where it is none."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise BrokenSample(f"not JSON: {str(error)[:100]}") from None
    if not isinstance(record, dict):
        raise BrokenSample(f"a {type(record).__name__}; expected an object")
    return record


def record_messages(record: dict[str, Any], *, images: Path | None = None, rng: random.Random | None = None) -> list[dict[str, Any]]:
    """One record as messages.

    Args:
        images: folder that paths are relative to; None where a record has to bring its pictures along.
        rng: draws the question before a caption; None asks none.

    Raises:
        BrokenSample: parts, marks or pictures do not fit.
    """
    pictures = [_picture(value, images) for value in _listed(record)]
    field = next((name for name in TEXT_FIELDS if record.get(name) is not None), None)
    if field is None:
        raise BrokenSample(f"none of {', '.join(TEXT_FIELDS)}; name the columns that hold them with `columns` in the recipe")
    turns = list(_TURNS[field](record))
    if field == "caption" and rng is not None:
        prompt = rng.choice(CAPTION_PROMPTS)
        marks = IMAGE_MARK * len(pictures)
        turns[0] = ("user", f"{marks}\n{prompt}" if rng.random() < 0.5 else f"{prompt}\n{marks}")
    elif field != "conversations" and pictures and not any(_has_mark(content) for _, content in turns):
        first = next((index for index, (role, _) in enumerate(turns) if role == "user"), None)
        if first is None:
            raise BrokenSample("a picture, but no turn of a user")
        turns[first] = ("user", [{"type": "image"}] * len(pictures) + _parts(turns[first][1]))
    remaining = iter(pictures)
    messages = [_message(role, content, remaining, len(pictures)) for role, content in turns]
    if next(remaining, None) is not None:
        raise BrokenSample(f"fewer {IMAGE_MARK} marks than pictures ({len(pictures)})")
    if not messages or messages[-1]["role"] != "assistant":
        raise BrokenSample("the last turn is not the assistant's")
    return messages


def _listed(record: dict[str, Any]) -> list[Any]:
    value = record.get("image") if record.get("image") is not None else record.get("images")
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _picture(value: Any, images: Path | None) -> Any:
    """What the processor opens."""
    if isinstance(value, dict):  # Hugging Face's Image feature
        value = value.get("bytes") or value.get("path")
    if value is None:
        raise BrokenSample("a picture without bytes")
    if not isinstance(value, str):
        return value
    if images is None:
        raise BrokenSample(f"the picture {value!r} is a path; say with `images` which folder it is in")
    if not (images / value).is_file():
        raise BrokenSample(f"no picture {value}")
    return str(images / value)


def _conversation_turns(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    turns = record["conversations"]
    if not isinstance(turns, list) or not turns:
        raise BrokenSample("no `conversations`")
    for turn in turns:
        role, value = (ROLES.get(str(turn.get("from"))), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if role is None or not isinstance(value, str):
            raise BrokenSample("a turn needs `from` (human, gpt or system) and a text `value`")
        yield role, value


def _message_turns(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for turn in record["messages"]:
        role, content = (ROLES.get(str(turn.get("role"))), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if role is None or not isinstance(content, (str, list)):
            raise BrokenSample("a message needs a `role` (user, assistant or system) and a `content`")
        yield role, content


def _text_turns(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for turn in record["texts"]:
        for role in ("user", "assistant"):
            if not isinstance(turn, dict) or not isinstance(turn.get(role), str):
                raise BrokenSample("an entry of `texts` needs the texts `user` and `assistant`")
            yield role, turn[role]


def _question_turns(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    answer = record.get("answer") if record.get("answer") is not None else record.get("answers")
    if isinstance(answer, (list, tuple)):
        answer = answer[0] if answer else None
    if not isinstance(record["question"], str) or answer is None:
        raise BrokenSample("a question needs an answer")
    yield "user", record["question"]
    yield "assistant", str(answer)


def _caption_turns(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if not isinstance(record["caption"], str) or not record["caption"].strip():
        raise BrokenSample("an empty caption")
    yield "user", []
    yield "assistant", record["caption"].strip()


_TURNS: dict[str, Callable[[dict[str, Any]], Iterator[tuple[str, Any]]]] = {
    "conversations": _conversation_turns,
    "messages": _message_turns,
    "texts": _text_turns,
    "question": _question_turns,
    "caption": _caption_turns,
}


def _has_mark(content: Any) -> bool:
    if isinstance(content, str):
        return IMAGE_MARK in content
    return any(isinstance(part, dict) and part.get("type") == "image" for part in content)


def _parts(content: Any) -> list[dict[str, Any]]:
    """A text with marks, or parts, as parts; an image part stands for the next picture."""
    if not isinstance(content, str):
        return list(content)
    parts: list[dict[str, Any]] = []
    for index, text in enumerate(content.split(IMAGE_MARK)):
        if index:
            parts.append({"type": "image"})
        if text.strip():
            parts.append({"type": "text", "text": text.strip("\n")})
    return parts


def _message(role: str, content: Any, remaining: Iterator[Any], count: int) -> dict[str, Any]:
    if role != "user":
        return {"role": role, "content": content if isinstance(content, str) else _text_of(content)}
    parts = []
    for part in _parts(content):
        if not isinstance(part, dict) or part.get("type") not in ("image", "text"):
            raise BrokenSample("a part of a message needs the type `text` or `image`")
        if part["type"] == "text":
            parts.append({"type": "text", "text": str(part.get("text") or "")})
            continue
        picture = next(remaining, None)
        if picture is None:
            raise BrokenSample(f"more {IMAGE_MARK} marks than pictures ({count})")
        parts.append({"type": "image", "image": picture})
    return {"role": role, "content": parts}


def _text_of(parts: Any) -> str:
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))
