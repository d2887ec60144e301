"""Generation: one loop over a runtime for an answer, a batch of answers, and beams.

    engine = Engine(runtime, processor)
    for piece in engine.stream(processor(messages), GenerationOptions(max_new_tokens=64)):
        print(piece, end="", flush=True)

Stopping, streaming, timing and the two caches (image features; keys and values of the last conversation) are here, once for every
runtime. What picks a token is in `fastvlm.sampling` and `fastvlm.beam_search`.
"""

import dataclasses
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fastvlm.beam_search import BeamSearch
from fastvlm.runtimes import Runtime
from fastvlm.sampling import Sampler, SamplingOptions, Vocabulary

if TYPE_CHECKING:
    from fastvlm.processor import ModelInputs, Processor

MAX_BEAMS = 256
MAX_LENGTH_PENALTY = 100  # length ** penalty has to stay a number

FinishReason = Literal["stop", "length", "cancelled"]


class ContextLengthError(ValueError):
    """A prompt that leaves no room for an answer in the model's context."""


@dataclass(frozen=True)
class GenerationOptions:
    """How to answer. The sampling fields are those of `fastvlm.sampling.SamplingOptions`."""

    max_new_tokens: int = 256  # tokens of the answer, its end token included
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int | None = None  # None: as the checkpoint's generation_config.json says, which is mostly 0
    seed: int | None = None
    stop: str | Sequence[str] = ()  # strings that end the answer; they are not part of it
    num_beams: int = 1  # above 1: beam search, which finds a more probable answer and shows it when it is complete
    length_penalty: float = 1.0  # beams are compared by log-probability / length ** this
    early_stopping: bool | Literal["never"] = (
        False  # beams: True stops at `num_beams` complete answers, "never" searches on while one could win
    )

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a whole number above 0")
        if self.num_beams > MAX_BEAMS:
            raise ValueError(f"num_beams is {self.num_beams}; each beam costs a row of the cache, and at most {MAX_BEAMS} are allowed")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if any(not isinstance(text, str) or not text for text in stop):
            raise ValueError(f"stop is {self.stop!r}; expected one string or several, none of them empty")
        object.__setattr__(self, "stop", stop)
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping is {self.early_stopping!r}; expected true, false or 'never'")
        is_number = isinstance(self.length_penalty, (int, float)) and not isinstance(self.length_penalty, bool)
        if not is_number or not abs(self.length_penalty) <= MAX_LENGTH_PENALTY:  # also NaN
            raise ValueError(
                f"length_penalty is {self.length_penalty!r}; expected a number from -{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY}"
            )
        is_drawn = self.sampling.temperature > 0  # checks the sampling fields too
        if self.num_beams > 1 and is_drawn:
            raise ValueError(f"num_beams is {self.num_beams} and temperature {self.temperature}; beams do not sample, set one of them back")

    @property
    def sampling(self) -> SamplingOptions:
        ngram_size = 0 if self.no_repeat_ngram_size is None else self.no_repeat_ngram_size
        return SamplingOptions(self.temperature, self.top_k, self.top_p, self.repetition_penalty, ngram_size, self.seed)


@dataclass(frozen=True)
class Timings:
    """Seconds and token counts of one answer. In a batch, encoding and prefill are those of all its rows together."""

    preprocess_s: float = 0.0  # pictures decoded and resized, text tokenised
    encode_s: float = 0.0  # vision tower and projector; near 0 when the features were cached
    prefill_s: float = 0.0  # the prompt through the language model
    decode_s: float = 0.0  # all tokens after the first; waiting for whoever reads the stream is not counted
    per_token_s: float = 0.0  # decode_s for each of them
    ttft_s: float = 0.0  # time to first token: preprocess, encode, prefill and picking the token
    prompt_tokens: int = 0  # image tokens included
    image_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, taken from the last conversation's cache instead of prefilled
    completion_tokens: int = 0


@dataclass(frozen=True)
class GenerationResult:
    text: str
    token_ids: list[int]  # all that were produced, the end token included
    finish_reason: FinishReason  # "stop": end token or stop string; "length": max_new_tokens or the context; "cancelled": stream closed
    timings: Timings


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for a runtime."""

    input_ids: np.ndarray  # (S,) int64
    image_features: np.ndarray | None  # (placeholders, D), or None without images
    images: tuple[tuple[int, bytes], ...]  # for each image, the place of its first token and the digest of its pixels
    preprocess_s: float

    @property
    def image_tokens(self) -> int:
        return 0 if self.image_features is None else len(self.image_features)


class FeatureCache:
    """Projected features of the images seen last, by content. Thread-safe; holds at most `max_bytes`."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._features: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> np.ndarray | None:
        with self._lock:
            if key in self._features:
                self._features.move_to_end(key)
            return self._features.get(key)

    def put(self, key: bytes, features: np.ndarray) -> None:
        with self._lock:
            if features.nbytes > self.max_bytes or key in self._features:
                return
            self._features[key] = features
            self.nbytes += features.nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._features.popitem(last=False)[1].nbytes


@dataclass
class _Conversation:
    """What a cache of one row holds, token by token."""

    cache: Any
    input_ids: np.ndarray
    images: tuple[tuple[int, bytes], ...]

    def common_prefix(self, prompt: Prompt) -> int:
        """How many tokens of `prompt` the cache already holds. The last one never counts: its logits are needed."""
        length = min(len(self.input_ids), len(prompt.input_ids) - 1)
        differs = (self.input_ids[:length] != prompt.input_ids[:length]).nonzero()[0]
        if len(differs):
            length = int(differs[0])
        for (start, key), (cached_start, cached_key) in zip(prompt.images, self.images, strict=False):
            if (start, key) != (cached_start, cached_key):
                length = min(length, start, cached_start)
        return length


class Engine:
    """Answers prompts with a runtime.

    Several streams may be open at once, also from several threads: the kept conversation belongs to the stream that took it, and
    the others go without.
    """

    def __init__(
        self, runtime: Runtime, processor: "Processor", *, feature_cache_bytes: int = 64 << 20, prefix_cache_bytes: int = 512 << 20
    ):
        """`feature_cache_bytes` and `prefix_cache_bytes` bound what is kept for later questions; 0 keeps nothing."""
        self.runtime = runtime
        self.processor = processor
        self.features = FeatureCache(feature_cache_bytes)
        self.prefix_cache_bytes = prefix_cache_bytes
        self._vocabulary: Vocabulary | None = None
        self._conversation: _Conversation | None = None
        self._lock = threading.Lock()

    @property
    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            config = self.runtime.config
            self._vocabulary = known_ids(self.processor.tokenizer, config.text_config.vocab_size, config.image_token_id)
        return self._vocabulary

    def stream(self, inputs: "ModelInputs", options: GenerationOptions) -> "TextStream":
        """Pieces of the answer as they come, whole characters only. Refuses a prompt that is too long at once; works as it is read."""
        self.check_length(inputs)
        return TextStream(self, inputs, self._with_defaults(options))

    def generate(self, inputs: "ModelInputs", options: GenerationOptions) -> GenerationResult:
        stream = self.stream(inputs, options)
        for _ in stream:
            pass
        return stream.result

    def generate_batch(self, inputs: "Sequence[ModelInputs]", options: GenerationOptions, batch_size: int = 8) -> list[GenerationResult]:
        """The answers to several prompts, up to `batch_size` of them decoded together. The same tokens as one by one."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected a whole number above 0")
        for item in inputs:
            self.check_length(item)
        if options.num_beams > 1:
            return [self.generate(item, options) for item in inputs]
        results = []
        for start in range(0, len(inputs), batch_size):
            results += self._generate_rows(inputs[start : start + batch_size], options)
        return results

    def _generate_rows(self, inputs: "Sequence[ModelInputs]", options: GenerationOptions) -> list[GenerationResult]:
        clock, options = _Clock(), self._with_defaults(options)
        prompts = self._prompts(inputs, clock)
        answers = [self._answer(prompt, options) for prompt in prompts]
        for _ in self._run(prompts, _Rows(answers, clock), clock, keep=False):
            pass
        return [answer.result(prompt, clock) for prompt, answer in zip(prompts, answers, strict=True)]

    def _with_defaults(self, options: GenerationOptions) -> GenerationOptions:
        """With the checkpoint's own where none was given."""
        if options.no_repeat_ngram_size is not None:
            return options
        return dataclasses.replace(options, no_repeat_ngram_size=self.processor.no_repeat_ngram_size)

    def check_length(self, inputs: "ModelInputs", room: int = 1) -> None:
        """Refuse a prompt that leaves less than `room` tokens of the context."""
        num_tokens, limit = inputs.input_ids.shape[-1], self.runtime.max_sequence_length
        if num_tokens + room > limit:
            num_image_tokens = int((inputs.input_ids == self.runtime.config.image_token_id).sum())
            raise ContextLengthError(
                f"the prompt has {num_tokens} tokens, {num_image_tokens} of them for images, and the model's context holds {limit}, "
                "the answer included; shorten the text, or use fewer images or a lower resolution"
            )

    def image_features(self, inputs: "Sequence[ModelInputs]") -> list[list[tuple[bytes, np.ndarray]]]:
        """For each input its images' digests and features (T, D), in order; encodes those that are not in the cache, each once."""
        images = [[image for group in item.image_groups for image in group] for item in inputs]  # (3, H, W) each
        keys = [[_digest(image) for image in row] for row in images]
        missing: dict[bytes, np.ndarray] = {}
        found: dict[bytes, np.ndarray] = {}
        for key, image in zip((k for row in keys for k in row), (i for row in images for i in row), strict=True):
            features = self.features.get(key)
            if features is None:
                missing[key] = image
            else:
                found[key] = features
        for shape in dict.fromkeys(image.shape for image in missing.values()):
            same_size = [key for key, image in missing.items() if image.shape == shape]
            encoded = self.runtime.encode_images(np.stack([missing[key] for key in same_size]))
            for key, features in zip(same_size, encoded, strict=True):
                found[key] = features.copy()  # a view would keep the whole group in memory
                self.features.put(key, found[key])
        return [[(key, found[key]) for key in row] for row in keys]

    def _prompts(self, inputs: "Sequence[ModelInputs]", clock: "_Clock") -> list[Prompt]:
        with clock.measure("encode"):
            features = self.image_features(inputs)
        return [self._prompt(item, row) for item, row in zip(inputs, features, strict=True)]

    def _prompt(self, inputs: "ModelInputs", images: list[tuple[bytes, np.ndarray]]) -> Prompt:
        input_ids = np.ascontiguousarray(inputs.input_ids.reshape(-1), np.int64)
        places = (input_ids == self.runtime.config.image_token_id).nonzero()[0]
        ends = np.cumsum([0, *(len(features) for _, features in images)])
        if ends[-1] != len(places):
            raise ValueError(f"{len(places)} image tokens in input_ids but {ends[-1]} image features; they must be equal")
        starts = tuple((int(places[end]), key) for end, (key, _) in zip(ends, images, strict=False))
        joined = np.concatenate([features for _, features in images]) if images else None
        return Prompt(input_ids, joined, starts, inputs.preprocess_s)

    def _answer(self, prompt: Prompt, options: GenerationOptions) -> "_Answer":
        tokenizer = self.processor.tokenizer
        max_tokens = min(options.max_new_tokens, self.runtime.max_sequence_length - len(prompt.input_ids))
        sampler = Sampler(options.sampling, self.vocabulary, prompt.input_ids)
        return _Answer(sampler, tokenizer.stream(), frozenset(tokenizer.eos_token_ids), StopStrings(options.stop), max_tokens)

    def _beams(self, prompt: Prompt, answer: "_Answer", options: GenerationOptions, clock: "_Clock") -> "_Beams":
        search = BeamSearch(options, self.vocabulary, answer.eos_token_ids, max_tokens=answer.max_tokens, prompt_ids=prompt.input_ids)
        return _Beams(search, answer, clock)

    def _run(self, prompts: list[Prompt], policy: "_Policy", clock: "_Clock", keep: bool) -> Generator[None]:
        """The loop. Yields after each step, when the policy may have new text.

        Args:
            keep: one prompt only: begin with the kept conversation where it fits, and keep this one afterwards.
        """
        runtime = self.runtime
        cache, cached = self._take(prompts[0]) if keep else (None, 0)
        clock.cached_tokens = cached
        # While a runtime works the cache is in its hands: if that is interrupted, columns may be half written, and it is not kept.
        held: Any = None
        consumed: list[int] = []
        try:
            with clock.measure("prefill"):
                rest = [_without(prompt, cached, runtime.config.image_token_id) for prompt in prompts]
                logits, held = runtime.prefill([ids for ids, _ in rest], [features for _, features in rest], cache)
            while True:
                with clock.measure("decode"):
                    tokens, rows = policy.step(logits)
                yield
                if len(tokens) == 0:
                    return
                with clock.measure("decode"):
                    cache, held = held, None
                    if len(rows) != len(logits) or (rows != np.arange(len(rows))).any():
                        cache = runtime.reorder(cache, rows)
                    logits = runtime.decode(tokens, cache)
                    held = cache
                    consumed.append(int(tokens[0]))
        finally:
            if keep and held is not None:
                self._keep(held, prompts[0], [] if policy.is_branching else consumed)

    def _take(self, prompt: Prompt) -> tuple[Any, int]:
        """The kept cache, cut down to what it shares with `prompt`, and how many tokens that is."""
        with self._lock:
            conversation, self._conversation = self._conversation, None
        if conversation is None or (length := conversation.common_prefix(prompt)) == 0:
            return None, 0
        try:
            return self.runtime.trim(conversation.cache, length), length
        except NotImplementedError:
            return None, 0

    def _keep(self, cache: Any, prompt: Prompt, consumed: list[int]) -> None:
        input_ids = np.concatenate((prompt.input_ids, np.array(consumed, np.int64)))
        if cache.nbytes > self.prefix_cache_bytes:
            return
        try:
            if cache.length != len(input_ids):  # after beams: all share the prompt, and what follows is of no use
                cache = self.runtime.trim(self.runtime.reorder(cache, np.zeros(1, np.int64)), len(input_ids))
        except NotImplementedError:
            return
        with self._lock:
            self._conversation = _Conversation(cache, input_ids, prompt.images)


class TextStream:
    """Iterator over pieces of text; `result` is there when it has ended, also by `close()`."""

    def __init__(self, engine: Engine, inputs: "ModelInputs", options: GenerationOptions):
        self._result: GenerationResult | None = None
        self._pieces = self._generate(engine, inputs, options)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop here; what was produced so far is the result."""
        self._pieces.close()

    @property
    def result(self) -> GenerationResult:
        if self._result is None:
            raise RuntimeError("the stream has not ended; read it to its end, or close it after its first piece")
        return self._result

    def _generate(self, engine: Engine, inputs: "ModelInputs", options: GenerationOptions) -> Generator[str]:
        clock = _Clock()
        (prompt,) = engine._prompts([inputs], clock)
        answer = engine._answer(prompt, options)
        policy = engine._beams(prompt, answer, options, clock) if options.num_beams > 1 else _Rows([answer], clock)
        steps = engine._run([prompt], policy, clock, keep=engine.prefix_cache_bytes > 0)
        try:
            for _ in steps:
                if piece := answer.take_text():
                    yield piece
        finally:
            steps.close()  # keeps the cache now, not when this is collected
            self._result = answer.result(prompt, clock)


@dataclass
class _Clock:
    """Seconds spent on each part of the work, without the time in which nobody asked for the next piece."""

    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    cached_tokens: int = 0
    _started: float = 0.0
    _part: str = ""

    def measure(self, part: str) -> "_Clock":
        self._part = part
        return self

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        setattr(self, self._part, getattr(self, self._part) + time.perf_counter() - self._started)

    def now(self) -> float:
        """Seconds of decoding so far, inside a measured part."""
        return self.decode + time.perf_counter() - self._started


class StopStrings:
    """Cuts text at the first stop string, also when it is spread over pieces."""

    def __init__(self, stop: Sequence[str]):
        self._stop = tuple(stop)
        self._held = ""  # the end of the text so far that may be the beginning of a stop string

    def feed(self, piece: str) -> tuple[str, bool]:
        """The text that is certain after `piece`, and whether a stop string was met."""
        if not self._stop:
            return piece, False
        text = self._held + piece
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self._held = ""
            return text[: min(places)], True
        held = max(
            (length for stop in self._stop for length in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:length])), default=0
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What was held back and turned out to be ordinary text."""
        held, self._held = self._held, ""
        return held


@dataclass
class _Answer:
    """One answer as it grows: tokens, text, and why it ended."""

    sampler: Sampler
    decoder: Any  # fastvlm.tokenizer's incremental decoder
    eos_token_ids: frozenset[int]
    stop_strings: StopStrings
    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    ttft_decode_s: float = 0.0  # `_Clock.decode` at the first token
    end_decode_s: float = 0.0  # and at the last
    _text: list[str] = field(default_factory=list)
    _num_taken: int = 0

    def push(self, token: int) -> None:
        """Add a token; sets `finish_reason` if it is the last one."""
        self.token_ids.append(token)
        if token in self.eos_token_ids:
            self._finish("stop")
            return
        text, is_stopped = self.stop_strings.feed(self.decoder.push(token))
        self._text.append(text)
        if is_stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_tokens:
            self._finish("length")

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        text, is_stopped = self.stop_strings.feed(self.decoder.flush())
        self._text.append(text)
        if is_stopped:
            self.finish_reason = "stop"
        else:
            self._text.append(self.stop_strings.flush())

    def take_text(self) -> str:
        """The text since the last call."""
        piece = "".join(self._text[self._num_taken :])
        self._num_taken = len(self._text)
        return piece

    def result(self, prompt: Prompt, clock: _Clock) -> GenerationResult:
        num_tokens = len(self.token_ids)
        decode_s = self.end_decode_s - self.ttft_decode_s
        timings = Timings(
            preprocess_s=prompt.preprocess_s,
            encode_s=clock.encode,
            prefill_s=clock.prefill,
            decode_s=decode_s,
            per_token_s=decode_s / (num_tokens - 1) if num_tokens > 1 else 0.0,
            ttft_s=prompt.preprocess_s + clock.encode + clock.prefill + self.ttft_decode_s,
            prompt_tokens=len(prompt.input_ids),
            image_tokens=prompt.image_tokens,
            cached_tokens=clock.cached_tokens,
            completion_tokens=num_tokens,
        )
        return GenerationResult("".join(self._text), self.token_ids, self.finish_reason or "cancelled", timings)


class _Policy(Protocol):
    """What becomes of each step's logits."""

    is_branching: bool  # rows may be copies of each other

    def step(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits (B, V) -> tokens (B',) to go on with and the rows (B',) of this step that they continue; none when all is said."""
        ...


class _Rows:
    """Independent answers; finished ones leave the batch."""

    is_branching = False

    def __init__(self, answers: list[_Answer], clock: _Clock):
        self._live = answers
        self._clock = clock

    def step(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens, rows, live = [], [], []
        for row, answer in enumerate(self._live):
            token = answer.sampler(logits[row])
            answer.push(token)
            answer.end_decode_s = self._clock.now()
            if len(answer.token_ids) == 1:
                answer.ttft_decode_s = answer.end_decode_s
            if answer.finish_reason is None:
                tokens.append(token)
                rows.append(row)
                live.append(answer)
        self._live = live
        return np.array(tokens, np.int64), np.array(rows, np.int64)


class _Beams:
    """One answer by beam search. Its text comes at the end: until then another beam may win."""

    is_branching = True

    def __init__(self, search: BeamSearch, answer: _Answer, clock: _Clock):
        self._search = search
        self._answer = answer
        self._clock = clock

    def step(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answer = self._answer
        is_first = answer.ttft_decode_s == 0
        tokens, rows = self._search.step(logits)
        answer.end_decode_s = self._clock.now()
        if is_first:
            answer.ttft_decode_s = answer.end_decode_s
        if self._search.is_done:
            for token in self._search.best:
                answer.push(token)
                if answer.finish_reason is not None:  # a stop string: what follows is not part of the answer
                    break
        return tokens, rows


def known_ids(tokenizer: Any, vocab_size: int, image_token_id: int) -> Vocabulary:
    """What may be produced by a head of `vocab_size` rows: the tokenizer's ids, but not the image placeholder, which stands for no text."""
    size, count = vocab_size, tokenizer.vocab_size
    # Listing a vocabulary takes a tenth of a second, just before the first token. If no id from `count` on stands for something, the
    # `count` ids that do are the ones below it, and there are no holes.
    has_holes = count > vocab_size or any(tokenizer.token(token_id) is not None for token_id in range(count, vocab_size))
    unknown = set(tokenizer.unknown_ids(vocab_size) if has_holes else range(count, vocab_size)) | {image_token_id}
    while size - 1 in unknown:  # nearly always one run at the end, and cutting that off costs nothing per token
        size -= 1
    return Vocabulary(size, frozenset(i for i in unknown if i < size))


def _digest(image: np.ndarray) -> bytes:
    digest = hashlib.sha256(repr((image.shape, str(image.dtype))).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _without(prompt: Prompt, length: int, image_token_id: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids and features of `prompt` after its first `length` tokens."""
    if prompt.image_features is None or length == 0:
        return prompt.input_ids[length:], prompt.image_features
    num_dropped = int((prompt.input_ids[:length] == image_token_id).sum())
    features = prompt.image_features[num_dropped:]
    return prompt.input_ids[length:], features if len(features) else None
