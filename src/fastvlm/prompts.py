"""Messages to segments of a prompt: text, special tokens and pictures, each known for what it is.

    template = ChatTemplate(QWEN_2, image_token="<image>", tokens=["<|im_start|>", "<|im_end|>"])
    messages = [{"role": "user", "content": [{"type": "image", "image": "scan.png"}, {"type": "text", "text": "What is the total?"}]}]
    template.segments(messages, add_generation_prompt=True)

A checkpoint's chat template is a Jinja program that returns one string, in which a special token that the template wrote and the same
letters typed by a user look alike. So every special token in a message's text is marked before rendering, with a character that no text
holds, and the marks tell the two apart afterwards. The same trick finds where an assistant's words begin and end, for the loss of
training and so that a prompt and its answer are the beginning of the next prompt.

Segments become ids in `processor`.
"""

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]
IMAGE_TOKEN = "<image>"

# Turns whose content is a list of parts into turns whose content is a string: parts one a line, `<image>` for a picture. It stands before
# templates that know strings only, so that they can be given pictures, by us and by transformers.
_PARTS_TO_STRING = (
    "{%- set ns = namespace(turns=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set ns.turns = ns.turns + [message] -%}"
    "{%- else -%}"
    "{%- set lines = namespace(all=[]) -%}"
    "{%- for part in message['content'] -%}"
    "{%- set lines.all = lines.all + [IMAGE if part['type'] == 'image' else part['text']] -%}"
    "{%- endfor -%}"
    "{%- set ns.turns = ns.turns + [{'role': message['role'], 'content': lines.all | join('\\n')}] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = ns.turns -%}{{ '' }}"
)

# The released models' own (`qwen_2` in Apple's code): ChatML, with a system turn put first where there is none.
QWEN_2 = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# LLaVA's `v1`, for Vicuna.
VICUNA_V1 = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% else %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# The first stage of training: pictures and their caption, nothing else (LLaVA's `plain`). Text of the user is left out.
PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + '\\n' }}"
    "{% elif message['content'] is not string %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ IMAGE }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
)

BUILT_IN = {"qwen_2": QWEN_2, "vicuna_v1": VICUNA_V1, "plain": PLAIN}


class PromptError(ValueError):
    """Messages that cannot become a prompt: which one, what it holds, what was wanted."""


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt that is tokenised by itself.

    Attributes:
        kind: `text` is plain text; `token` is one special token, by name; `image` is where a picture's features go.
        text: the text, or the token's name.
        is_answer: part of what an assistant says, its end-of-turn token included: what a model learns to produce.
    """

    kind: Literal["text", "token", "image"]
    text: str
    is_answer: bool = False


@dataclass(frozen=True)
class Turn:
    """A checked message: its role and its parts, each `{"type": "text", "text": str}` or `{"type": "image", "image": source}`."""

    role: str
    parts: tuple[Mapping[str, Any], ...]
    is_string: bool  # content was a string, which is what some templates want to see again

    @property
    def images(self) -> list[Any]:
        return [part["image"] for part in self.parts if part["type"] == "image"]

    @property
    def text(self) -> str:
        return "\n".join(part["text"] for part in self.parts if part["type"] == "text")


def read_messages(messages: Sequence[Message]) -> list[Turn]:
    """Check messages in the form of OpenAI's API; `PromptError` says which is wrong and how."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(f"messages is a {type(messages).__name__}; expected a list such as [{{'role': 'user', 'content': 'Hello'}}]")
    if not messages:
        raise PromptError("messages is empty; expected at least one, such as {'role': 'user', 'content': 'Hello'}")
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _read_message(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is a {type(message).__name__}; expected {{'role': ..., 'content': ...}}")
    if unknown := sorted(map(str, set(message) - {"role", "content"})):
        raise PromptError(f"{where} has {', '.join(unknown)}; a message has a role and a content")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise PromptError(f"{where}: role is {str(role)[:40]!r}; expected system, user or assistant")
    if isinstance(content, str):
        return Turn(role, ({"type": "text", "text": content},), is_string=True)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(f"{where}: content is a {type(content).__name__}; expected a string or a list of parts")
    for index, part in enumerate(content):
        part_type = part.get("type") if isinstance(part, Mapping) else None
        if part_type not in ("text", "image"):
            raise PromptError(f"{where}: content[{index}] has the type {str(part_type)[:40]!r}; expected 'text' or 'image'")
        if part_type not in part or (part_type == "text" and not isinstance(part["text"], str)):
            raise PromptError(f"{where}: content[{index}] lacks its {part_type}; expected {{'type': {part_type!r}, {part_type!r}: ...}}")
        if part_type == "image" and role != "user":
            raise PromptError(f"{where}: content[{index}] is an image in a turn of the {role}; images belong to a user's turns")
    return Turn(role, tuple(content), is_string=False)


class ChatTemplate:
    """A chat template, ready to cut messages into segments.

    Attributes:
        source: the Jinja program, such that transformers renders messages with pictures with it too.
    """

    def __init__(
        self,
        source: str,
        *,
        image_token: str = IMAGE_TOKEN,
        tokens: Collection[str] = (),
        variables: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            source: a Jinja program as in tokenizer_config.json, or a name in `BUILT_IN`.
            image_token: what stands for a picture.
            tokens: special tokens, which the template may write and messages may not.
            variables: what the program may ask for by name: bos_token, eos_token, ...
        """
        self.image_token = image_token
        self._variables = dict(variables or {})
        names = sorted({*tokens, image_token}, key=len, reverse=True)
        self._tokens = "|".join(map(re.escape, names))
        literal = json.dumps(image_token, ensure_ascii=False)
        plain = PLAIN.replace("IMAGE", literal)
        self.is_plain = source in ("plain", PLAIN, plain)
        self.source = plain if self.is_plain else BUILT_IN.get(source, source)
        self._template = _compile(self.source)
        self._takes_strings = True
        if self.is_plain:
            return
        if not self._takes_parts():
            self.source = _PARTS_TO_STRING.replace("IMAGE", literal) + self.source
            self._template = _compile(self.source)
            if not self._takes_parts():
                raise PromptError("the chat template does not repeat what a user says; use another chat_template")
        self._takes_strings = _PROBE in self._try([{"role": "user", "content": _PROBE}])

    def segments(self, turns: Sequence[Turn], *, add_generation_prompt: bool = True, answers_needed: bool = False) -> list[Segment]:
        """The prompt of a conversation.

        Args:
            turns: from `read_messages`.
            add_generation_prompt: end where the assistant's next turn begins.
            answers_needed: raise where the template does not show what an assistant says and where it ends.
        """
        if self.is_plain:
            return self._plain_segments(turns)
        marks = _free_marks(turns)
        num_answers = sum(turn.role == "assistant" for turn in turns)
        rendered = self._render(turns, marks, add_generation_prompt, mark_answers=num_answers > 0)
        is_marked = rendered.count(marks.start) == rendered.count(marks.end) == num_answers
        if not is_marked:  # the template rewrites what assistants said, for example to drop their reasoning
            if answers_needed:
                raise PromptError("the chat template rewrites what assistants say, so there is nothing to learn from; use another template")
            rendered = self._render(turns, marks, add_generation_prompt, mark_answers=False)
        segments = self._cut(rendered, marks)
        num_images = sum(len(turn.images) for turn in turns)
        found = sum(segment.kind == "image" for segment in segments)
        if found != num_images:
            raise PromptError(f"the chat template wrote {found} image tokens for {num_images} images; use another chat_template")
        if answers_needed and sum(_ends_with_token(segments, index) for index in range(len(segments))) != num_answers:
            raise PromptError("the chat template puts no special token after what assistants say, so a model would not learn to stop")
        return segments

    def _plain_segments(self, turns: Sequence[Turn]) -> list[Segment]:
        segments: list[Segment] = []
        for turn in turns:
            segments += [Segment("image", self.image_token) for _ in turn.images]
            if turn.role == "assistant":
                segments.append(Segment("text", turn.text + "\n", is_answer=True))
        return segments

    # Rendering

    def _render(self, turns: Sequence[Turn], marks: "_Marks", add_generation_prompt: bool, mark_answers: bool) -> str:
        messages = [self._message(turn, marks, mark_answers and turn.role == "assistant") for turn in turns]
        return self._run(messages, add_generation_prompt)

    def _message(self, turn: Turn, marks: "_Marks", is_answer: bool) -> dict[str, Any]:
        parts: list[dict[str, str]] = []
        for part in turn.parts:
            if part["type"] == "image":
                parts.append({"type": "image"})
                continue
            # The guard at a seam keeps two texts that a template joins from spelling a token together.
            seam = marks.guard if parts and parts[-1]["type"] == "text" else ""
            parts.append({"type": "text", "text": seam + self._guard_tokens(part["text"], marks.guard)})
        if is_answer:
            # What a template would trim is left out here, for it cannot see past the marks.
            start, end = self._trims
            parts = parts or [{"type": "text", "text": ""}]
            first, last = parts[0], parts[-1]
            first["text"] = marks.start + first["text"].lstrip(start)
            last["text"] = last["text"].rstrip(end) + marks.end
        if turn.is_string and self._takes_strings:
            return {"role": turn.role, "content": parts[0]["text"]}
        return {"role": turn.role, "content": parts}

    def _guard_tokens(self, text: str, guard: str) -> str:
        # A lookahead, so that a token that begins within another one is found too.
        return re.sub(f"(?={self._tokens})", guard, text)

    def _run(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                {**self._variables, "messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
            )
        except Exception as error:  # a template's own raise_exception, and whatever its expressions run into
            said = " ".join(str(error).translate(_WITHOUT_MARKS).split())[:200]
            raise PromptError(f"the chat template does not take these messages: {said or type(error).__name__}") from error

    def _cut(self, rendered: str, marks: "_Marks") -> list[Segment]:
        pieces: list[tuple[str, str]] = []  # kind (of a segment, or start or end of an answer), text
        position = 0

        def add_text(stop: int) -> None:
            if text := rendered[position:stop].replace(marks.guard, ""):
                pieces.append(("text", text))

        for match in re.finditer(f"(?<!{marks.guard})(?:{self._tokens})|[{marks.start}{marks.end}]", rendered):
            add_text(match.start())
            position = match.end()
            found = match[0]
            kind = {marks.start: "start", marks.end: "end", self.image_token: "image"}.get(found, "token")
            pieces.append((kind, found))
        add_text(len(rendered))
        return _segments(pieces, self._gap if any(kind == "start" for kind, _ in pieces) else "")

    # What the template does, found out by trying

    def _try(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        try:
            return self._run(messages, add_generation_prompt)
        except PromptError:
            return ""

    def _takes_parts(self) -> bool:
        """Whether it reads a list of parts, picture included, as such; else it fails, or prints the list."""
        rendered = self._try([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _PROBE}]}])
        return rendered.count(self.image_token) == 1 and rendered.count(_PROBE) == 1 and "'type'" not in rendered

    def _dialogue(self, answer: str) -> list[dict[str, Any]]:
        turns = [Turn(role, ({"type": "text", "text": text},), is_string=True) for role, text in (("user", "x"), ("assistant", answer))]
        return [self._message(turn, _PROBE_MARKS, is_answer=False) for turn in turns]

    @functools.cached_property
    def _trims(self) -> tuple[str | None, str | None]:
        """The white space that it trims from the start and from the end of what an assistant says, as `lstrip` and `rstrip` take it."""
        before, found, after = self._try(self._dialogue(_PROBE)).partition(_PROBE)
        if not found:
            return "", ""
        trimmed: list[str] = ["", ""]
        for letter in _WHITE_SPACE:
            spaced = self._try(self._dialogue(letter * 3 + _PROBE + letter * 3)).partition(_PROBE)
            trimmed[0] += letter if spaced[0] == before else ""
            trimmed[1] += letter if spaced[2] == after else ""
        start, end = (None if letters == _WHITE_SPACE else letters for letters in trimmed)
        return start, end

    @functools.cached_property
    def _gap(self) -> str:
        """White space between the generation prompt and an answer, which the model has to produce itself."""
        prompt = self._try(self._dialogue("")[:1], add_generation_prompt=True)
        before, found, _ = self._try(self._dialogue(_PROBE)).partition(_PROBE)
        gap = before.removeprefix(prompt)
        return gap if found and before.startswith(prompt) and not gap.strip() else ""


class _Marks(NamedTuple):
    guard: str  # before a special token that a message spells
    start: str  # of an answer
    end: str


# Characters that Unicode sets aside for uses like this one.
_CANDIDATES = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_WITHOUT_MARKS = dict.fromkeys(map(ord, _CANDIDATES))
_PROBE = "Zq7"
_WHITE_SPACE = " \t\n"
_PROBE_MARKS = _Marks(*_CANDIDATES[:3])


def _free_marks(turns: Sequence[Turn]) -> _Marks:
    """Three characters that no text of the conversation holds."""
    used = {letter for turn in turns for letter in turn.text if letter >= _CANDIDATES[0]}
    free = [letter for letter in _CANDIDATES if letter not in used][:3]
    if len(free) < 3:
        raise PromptError("the messages hold nearly all of the characters U+FDD0 to U+FDEF, which stand for nothing; remove them")
    return _Marks(*free)


def _segments(pieces: Sequence[tuple[str, str]], gap: str) -> list[Segment]:
    """Pieces of text, tokens, images and the marks around answers -> segments that know whether they belong to an answer."""
    segments: list[Segment] = []
    is_answer = False
    carried = ""  # the gap, to be read as one with the answer's first words
    last_of_answer = -1  # index of the token that ends the turn
    for index, (kind, text) in enumerate(pieces):
        if kind == "start":
            is_answer = True
            if gap and segments and segments[-1].kind == "text" and segments[-1].text.endswith(gap):
                before = segments.pop().text.removesuffix(gap)
                segments += [Segment("text", before)] if before else []
                carried = gap
        elif kind == "end":
            is_answer = False
            segments += [Segment("text", carried, is_answer=True)] if carried else []
            carried = ""
            after = [index + 1, index + 2] if pieces[index + 1 : index + 2] and not pieces[index + 1][1].strip() else [index + 1]
            if [piece_kind for piece_kind, _ in pieces[after[-1] : after[-1] + 1]] == ["token"]:
                last_of_answer = after[-1]
        elif kind == "image":
            segments.append(Segment("image", text))
        elif kind == "text":
            segments.append(Segment("text", carried + text, is_answer or index <= last_of_answer))
            carried = ""
        else:
            segments.append(Segment("token", text, is_answer or index <= last_of_answer))
    return segments


def _ends_with_token(segments: Sequence[Segment], index: int) -> bool:
    """Whether an answer ends at `index`, and with a token."""
    is_last = index + 1 == len(segments) or not segments[index + 1].is_answer
    return segments[index].is_answer and is_last and segments[index].kind == "token"


class _Generation(Extension):
    """`{% generation %}`, by which some templates mark what assistants say for transformers; we find it by ourselves."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up, so that templates mean the same here. Sandboxed: a template comes with the weights, from anywhere."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _compile(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise PromptError(f"the chat template is not valid Jinja: {' '.join(str(error).split())[:200]}") from error
