"""The generation loop against transformers' `generate`, and its parts against their definitions."""

import itertools
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm.generate import ContextLengthError, Engine, FeatureCache, GenerationOptions, StopStrings, known_ids
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.runtimes.torch import TorchRuntime
from fastvlm.sampling import Vocabulary

VOCAB_SIZE, IMAGE_TOKEN_ID, EOS = 64, 63, (7, 9)
CONTEXT = 96


class LetterTokenizer:
    """Ids are letters, four to a piece; ids 60 to 63 have no text. Enough of a tokenizer for the loop."""

    eos_token_ids = EOS
    vocab_size = 59

    def token(self, token_id: int) -> str | None:
        return None if token_id == 4 or token_id >= 60 else f"token {token_id}"

    def stream(self) -> "LetterTokenizer":
        return self

    def push(self, token: int) -> str:
        return f"{chr(97 + token % 26)}{token} "

    def flush(self) -> str:
        return ""

    def unknown_ids(self, size: int) -> list[int]:
        return [4, *range(60, size)]

    def text(self, tokens: list[int]) -> str:
        return "".join(self.push(token) for token in tokens if token not in EOS)


@dataclass
class Processor:
    tokenizer: LetterTokenizer = field(default_factory=LetterTokenizer)
    no_repeat_ngram_size: int = 0


@dataclass
class Inputs:
    """The part of `ModelInputs` that generation reads."""

    input_ids: np.ndarray
    image_groups: list[np.ndarray] = field(default_factory=list)
    preprocess_s: float = 0.5


def reference_model(seed: int = 0, spread: float = 0.25) -> transformers.Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        eos_token_id=list(EOS),
        pad_token_id=0,
    )
    model = transformers.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=spread)
    return model


def our_model(reference: transformers.Qwen2ForCausalLM) -> FastVLMModel:
    text = TextConfig.from_dict(reference.config.to_dict())
    vision = VisionConfig(layers=(1, 1, 1, 1, 1), embed_dims=(8, 16, 32, 64, 128), mlp_ratios=(2, 2, 2, 2, 2))
    model = FastVLMModel(FastVLMConfig(vision, text, IMAGE_TOKEN_ID)).eval()
    model.language_model.load_state_dict(reference.model.state_dict())
    model.lm_head.load_state_dict(reference.lm_head.state_dict())
    return model


@pytest.fixture(scope="module")
def reference() -> transformers.Qwen2ForCausalLM:
    torch.set_num_threads(1)
    return reference_model()


@pytest.fixture(scope="module")
def runtime(reference: transformers.Qwen2ForCausalLM) -> TorchRuntime:
    return TorchRuntime(our_model(reference))


@pytest.fixture
def engine(runtime: TorchRuntime) -> Engine:
    return Engine(runtime, Processor())


def text_inputs(length: int, seed: int) -> Inputs:
    return Inputs(np.random.default_rng(seed).integers(10, 60, (1, length)))


def image_inputs(seed: int, sizes: tuple[tuple[int, int], ...] = ((64, 128),), text: int = 6) -> Inputs:
    """Random pictures of (height, width), each followed by text."""
    rng = np.random.default_rng(seed)
    groups = [rng.random((1, 3, *size), np.float32) for size in sizes]
    ids: list[int] = [11, 12]
    for height, width in sizes:
        ids += [IMAGE_TOKEN_ID] * (height * width // 64**2) + rng.integers(10, 60, text).tolist()
    return Inputs(np.array([ids]), groups)


def reference_tokens(reference: transformers.Qwen2ForCausalLM, inputs: Inputs, **options) -> list[int]:
    ids = torch.from_numpy(inputs.input_ids)
    suppressed = [4, 60, 61, 62, 63]
    output = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, suppress_tokens=suppressed, **options)
    tokens = output[0, ids.shape[1] :].tolist()
    ends = [place for place, token in enumerate(tokens) if token in EOS]
    return tokens[: ends[0] + 1] if ends else tokens


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_is_transformers(engine: Engine, reference: transformers.Qwen2ForCausalLM, penalty: float) -> None:
    for seed in range(6):
        inputs = text_inputs(5 + seed, seed)
        expected = reference_tokens(reference, inputs, max_new_tokens=20, repetition_penalty=penalty)
        result = engine.generate(inputs, GenerationOptions(max_new_tokens=20, repetition_penalty=penalty))
        assert result.token_ids == expected
        assert result.text == engine.processor.tokenizer.text(expected)
        assert result.finish_reason == ("stop" if expected[-1] in EOS else "length")


def test_the_checkpoint_says_which_ngrams_come_once(reference: transformers.Qwen2ForCausalLM, runtime: TorchRuntime) -> None:
    engine, changed = Engine(runtime, Processor(no_repeat_ngram_size=2)), 0
    for seed in range(6):
        inputs = text_inputs(8, seed)
        expected = reference_tokens(reference, inputs, max_new_tokens=30, no_repeat_ngram_size=2)
        assert engine.generate(inputs, GenerationOptions(max_new_tokens=30)).token_ids == expected
        assert engine.generate_batch([inputs], GenerationOptions(max_new_tokens=30))[0].token_ids == expected
        free = reference_tokens(reference, inputs, max_new_tokens=30)
        assert engine.generate(inputs, GenerationOptions(max_new_tokens=30, no_repeat_ngram_size=0)).token_ids == free
        changed += free != expected
    assert changed


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -0.5, 2.0])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_beams_are_transformers(length_penalty: float, early_stopping: bool | str) -> None:
    reference = reference_model(seed=3, spread=0.12)  # flat enough that answers end at different lengths
    engine = Engine(TorchRuntime(our_model(reference)), Processor())
    reasons = set()
    for seed, num_beams in itertools.product(range(4), (2, 5)):
        inputs = text_inputs(4 + seed, seed)
        options = {"num_beams": num_beams, "length_penalty": length_penalty, "early_stopping": early_stopping, "max_new_tokens": 12}
        result = engine.generate(inputs, GenerationOptions(**options))
        assert result.token_ids == reference_tokens(reference, inputs, **options)
        reasons.add(result.finish_reason)
    assert reasons >= {"stop"} if length_penalty < 1 else reasons


@pytest.mark.parametrize("penalties", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}])
def test_beams_with_penalties_are_transformers(reference: transformers.Qwen2ForCausalLM, engine: Engine, penalties: dict) -> None:
    for seed in range(3):
        inputs = text_inputs(6, seed)
        options = {"num_beams": 3, "max_new_tokens": 15, **penalties}
        assert engine.generate(inputs, GenerationOptions(**options)).token_ids == reference_tokens(reference, inputs, **options)


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(max_new_tokens=20),
        GenerationOptions(max_new_tokens=20, temperature=1.0, top_p=0.95, seed=3),
        GenerationOptions(max_new_tokens=20, repetition_penalty=1.5, no_repeat_ngram_size=2),
        GenerationOptions(max_new_tokens=6, num_beams=3),
        GenerationOptions(max_new_tokens=20, stop=["9 ", "5 j"]),
    ],
    ids=["greedy", "drawn", "penalty", "beams", "stop"],
)
def test_a_batch_of_unequal_rows_is_one_by_one(engine: Engine, options: GenerationOptions) -> None:
    inputs = [text_inputs(4 + 5 * seed, seed) for seed in range(5)]
    inputs += [image_inputs(0), image_inputs(1, ((128, 64), (64, 64))), image_inputs(0, text=9)]
    single = [engine.generate(item, options) for item in inputs]
    for batch_size in (3, 8):
        batch = engine.generate_batch(inputs, options, batch_size)
        assert [result.token_ids for result in batch] == [result.token_ids for result in single]
        assert [result.text for result in batch] == [result.text for result in single]
        assert [result.finish_reason for result in batch] == [result.finish_reason for result in single]
    assert len({len(result.token_ids) for result in single}) > 1 or options.num_beams > 1  # some rows end before others


def test_streamed_pieces_join_to_the_text(engine: Engine) -> None:
    options = GenerationOptions(max_new_tokens=12, stop="zzz")
    stream = engine.stream(text_inputs(5, 1), options)
    pieces = list(stream)
    assert len(pieces) > 5
    assert "".join(pieces) == stream.result.text == engine.generate(text_inputs(5, 1), options).text


def test_a_closed_stream_has_a_result(engine: Engine) -> None:
    stream = engine.stream(text_inputs(5, 1), GenerationOptions(max_new_tokens=50))
    first = next(stream)
    with pytest.raises(RuntimeError, match="not ended"):
        _ = stream.result
    stream.close()
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text == first
    assert list(stream) == []


@pytest.mark.parametrize("split", [1, 2, 3, 7])
def test_stop_strings_are_found_across_pieces(split: int) -> None:
    text = "one two thre three four"
    for stop in (["three"], ["e t", "four"], ["o", "one"], ["absent"], [" four", "three four"], []):
        places = [text.find(s) for s in stop if s in text]
        expected = text[: min(places)] if places else text
        filter_, shown, is_stopped = StopStrings(stop), "", False
        for start in range(0, len(text), split):
            piece, is_stopped = filter_.feed(text[start : start + split])
            shown += piece
            assert expected.startswith(shown)  # nothing of a stop string is shown, not even for a while
            if is_stopped:
                break
        if not is_stopped:
            shown += filter_.flush()
        assert shown == expected
        assert is_stopped == bool(places)


def test_a_stop_string_ends_the_answer(engine: Engine) -> None:
    inputs = text_inputs(5, 1)
    whole = engine.generate(inputs, GenerationOptions(max_new_tokens=20))
    stop = whole.text[9:14]
    assert " " in stop  # spread over two tokens
    result = engine.generate(inputs, GenerationOptions(max_new_tokens=20, stop=stop))
    assert result.text == whole.text[: whole.text.find(stop)]
    assert result.finish_reason == "stop"
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    assert len(result.token_ids) < len(whole.token_ids)


def test_the_context_ends_an_answer_and_refuses_a_prompt(engine: Engine) -> None:
    result = engine.generate(text_inputs(CONTEXT - 3, 0), GenerationOptions(max_new_tokens=50))
    assert len(result.token_ids) <= 3
    inputs = image_inputs(0, ((64, 64), (64, 128)), text=60)
    with pytest.raises(ContextLengthError, match=f"{inputs.input_ids.size} tokens, 3 of them for images.* {CONTEXT}"):
        engine.stream(inputs, GenerationOptions())
    with pytest.raises(ContextLengthError):
        engine.generate_batch([text_inputs(4, 0), inputs], GenerationOptions())
    with pytest.raises(ContextLengthError):  # no room for a single token
        engine.generate(text_inputs(CONTEXT, 0), GenerationOptions())


def test_timings_count_what_was_done(runtime: TorchRuntime) -> None:
    engine = Engine(runtime, Processor())
    inputs = image_inputs(2, ((128, 128),))
    timings = engine.generate(inputs, GenerationOptions(max_new_tokens=5)).timings
    assert (timings.prompt_tokens, timings.image_tokens, timings.cached_tokens) == (inputs.input_ids.size, 4, 0)
    assert timings.completion_tokens <= 5
    assert timings.preprocess_s == 0.5
    assert timings.encode_s > 0
    assert timings.prefill_s > 0
    assert timings.ttft_s >= timings.preprocess_s + timings.encode_s + timings.prefill_s
    assert timings.per_token_s == pytest.approx(timings.decode_s / (timings.completion_tokens - 1))


def test_a_slow_reader_is_not_counted(engine: Engine) -> None:
    stream = engine.stream(text_inputs(5, 1), GenerationOptions(max_new_tokens=6))
    for _ in stream:
        time.sleep(0.1)
    assert stream.result.timings.decode_s < 0.1


class CountingRuntime:
    """A runtime that notes what reaches it."""

    def __init__(self, runtime: TorchRuntime):
        self.runtime = runtime
        self.images = 0
        self.prefilled: list[int] = []

    def __getattr__(self, name: str):
        return getattr(self.runtime, name)

    def encode_images(self, pixel_values: np.ndarray) -> np.ndarray:
        self.images += len(pixel_values)
        return self.runtime.encode_images(pixel_values)

    def prefill(self, input_ids, image_features, cache=None):
        self.prefilled += [len(ids) for ids in input_ids]
        return self.runtime.prefill(input_ids, image_features, cache)


def turn(inputs: Inputs, answer: list[int], question: list[int]) -> Inputs:
    """The next prompt of a conversation."""
    return Inputs(np.concatenate((inputs.input_ids, [[*answer, *question]]), axis=1), inputs.image_groups)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_conversation_pays_only_for_what_is_new(runtime: TorchRuntime, num_beams: int) -> None:
    counting = CountingRuntime(runtime)
    engine = Engine(counting, Processor())
    plain = Engine(runtime, Processor(), feature_cache_bytes=0, prefix_cache_bytes=0)
    options = GenerationOptions(max_new_tokens=8, num_beams=num_beams)
    first = image_inputs(3, ((128, 128), (64, 64)))
    answer = engine.generate(first, options)
    assert answer.token_ids == plain.generate(first, options).token_ids
    second = turn(first, answer.token_ids, [20, 21, 22])
    result = engine.generate(second, options)
    assert result.token_ids == plain.generate(second, options).token_ids
    assert counting.images == 2  # each picture once
    if num_beams == 1:  # the last token of the answer was never fed to the model
        assert counting.prefilled == [first.input_ids.size, 1 + 3]
        assert result.timings.cached_tokens == second.input_ids.size - 4
    else:  # of beams only the prompt is kept
        assert counting.prefilled == [first.input_ids.size, len(answer.token_ids) + 3]


def test_another_question_about_the_same_picture_reuses_up_to_the_question(runtime: TorchRuntime) -> None:
    counting = CountingRuntime(runtime)
    engine = Engine(counting, Processor())
    plain = Engine(runtime, Processor(), feature_cache_bytes=0, prefix_cache_bytes=0)
    first = image_inputs(3, ((128, 128),))
    second = Inputs(first.input_ids.copy(), first.image_groups)
    second.input_ids[0, -3:] = [30, 31, 32]
    for inputs in (first, second, first, first):
        assert engine.generate(inputs, GenerationOptions(max_new_tokens=6)).token_ids == (
            plain.generate(inputs, GenerationOptions(max_new_tokens=6)).token_ids
        )
    # the same prompt again still needs the logits of its last token
    assert counting.prefilled == [first.input_ids.size, 3, 3, 1]
    assert counting.images == 1


def test_another_picture_in_the_same_place_is_not_reused(runtime: TorchRuntime) -> None:
    counting = CountingRuntime(runtime)
    engine = Engine(counting, Processor())
    plain = Engine(runtime, Processor(), feature_cache_bytes=0, prefix_cache_bytes=0)
    first, second = image_inputs(3), image_inputs(3)
    second.image_groups = [image_inputs(4).image_groups[0]]
    swapped = image_inputs(5, ((64, 64), (64, 64)), text=0)
    first_two = Inputs(swapped.input_ids, swapped.image_groups)
    last_two = Inputs(swapped.input_ids, [swapped.image_groups[0], image_inputs(6, ((64, 64),)).image_groups[0]])
    for inputs in (first, second, first_two, last_two):
        options = GenerationOptions(max_new_tokens=6)
        assert engine.generate(inputs, options).token_ids == plain.generate(inputs, options).token_ids
    # of each pair the second shares what stands before its own picture: 2 ids, then 2 ids and one picture's token
    assert counting.prefilled[1] == second.input_ids.size - 2
    assert counting.prefilled[3] == last_two.input_ids.size - 3


def test_streams_may_be_open_side_by_side(runtime: TorchRuntime) -> None:
    engine = Engine(runtime, Processor())
    options = GenerationOptions(max_new_tokens=10)
    expected = [engine.generate(text_inputs(6, seed), options).text for seed in range(3)]
    streams = [engine.stream(text_inputs(6, seed), options) for seed in range(3)]
    texts = ["", "", ""]
    for pieces in itertools.zip_longest(*streams, fillvalue=""):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts == expected


def test_an_interrupted_step_is_not_kept(runtime: TorchRuntime) -> None:
    class Interrupted(CountingRuntime):
        def decode(self, tokens, cache):
            logits = self.runtime.decode(tokens, cache)
            if cache.length == 9:
                raise KeyboardInterrupt
            return logits

    engine = Engine(Interrupted(runtime), Processor())
    with pytest.raises(KeyboardInterrupt):
        engine.generate(text_inputs(6, 1), GenerationOptions(max_new_tokens=10))
    result = engine.generate(text_inputs(6, 1), GenerationOptions(max_new_tokens=2))
    assert result.timings.cached_tokens == 0


def test_caches_are_bounded(runtime: TorchRuntime) -> None:
    cache = FeatureCache(max_bytes=1000)
    for number in range(5):
        cache.put(bytes([number]), np.zeros(100, np.float32))  # 400 bytes each
        cache.get(b"\x00")
    assert cache.nbytes == 800
    assert [cache.get(bytes([number])) is not None for number in range(5)] == [True, False, False, False, True]  # 0 was used last
    cache.put(b"big", np.zeros(1000, np.float32))
    assert cache.get(b"big") is None
    assert cache.nbytes == 800
    engine = Engine(runtime, Processor(), prefix_cache_bytes=100)
    options = GenerationOptions(max_new_tokens=3)
    assert [engine.generate(text_inputs(6, 1), options).timings.cached_tokens for _ in range(2)] == [0, 0]


def test_a_batch_encodes_each_picture_once(runtime: TorchRuntime) -> None:
    counting = CountingRuntime(runtime)
    engine = Engine(counting, Processor(), feature_cache_bytes=0)
    engine.generate_batch([image_inputs(0), image_inputs(0), image_inputs(1, ((64, 64),))], GenerationOptions(max_new_tokens=2))
    assert counting.images == 2


def test_unknown_ids_and_the_placeholder_are_kept_out() -> None:
    vocabulary = known_ids(LetterTokenizer(), VOCAB_SIZE, image_token_id=59)
    assert vocabulary.size == 59
    assert vocabulary.holes == {4}

    class Dense(LetterTokenizer):
        vocab_size = 50

        def token(self, token_id: int) -> str | None:
            return "x" if token_id < 50 else None

        def unknown_ids(self, size: int) -> list[int]:
            return list(range(50, size))

    assert known_ids(Dense(), VOCAB_SIZE, image_token_id=30) == Vocabulary(50, frozenset({30}))
    assert known_ids(Dense(), 40, image_token_id=39) == Vocabulary(39)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"num_beams": 1.5}, "num_beams is 1.5"),
        ({"num_beams": 257}, "at most 256"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"length_penalty": float("inf")}, "length_penalty is inf"),
        ({"stop": [""]}, "stop is"),
        ({"temperature": -1}, "temperature is -1"),
        ({"num_beams": 2, "temperature": 0.5}, "beams do not sample"),
        ({"early_stopping": "soon"}, "early_stopping"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**options)
