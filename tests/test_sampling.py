"""Sampling against transformers' logits processors, and by counting."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fastvlm.sampling import Ngrams, Sampler, SamplingOptions, Vocabulary, distribution, penalise


def random_logits(size: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def reference_probabilities(
    logits: np.ndarray, previous: list[int], penalty: float, temperature: float, top_k: int | None, top_p: float | None
) -> np.ndarray:
    processors = LogitsProcessorList()
    if penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p:
        processors.append(TopPLogitsWarper(top_p))
    scores = processors(torch.tensor([previous]), torch.from_numpy(logits.copy())[None])
    return torch.softmax(scores.double(), -1)[0].numpy()


@pytest.mark.parametrize("temperature", [0.2, 1.0, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (40, None), (None, 0.9), (None, 0.05), (50, 0.8), (1, 0.5), (5000, 0.999)])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_distribution_is_transformers(temperature: float, top_k: int | None, top_p: float | None, penalty: float) -> None:
    logits = random_logits(20000, seed=3)
    previous = [5, 17, 17, 9999, int(logits.argmax())]
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    expected = reference_probabilities(logits, previous, penalty, temperature, top_k, top_p)
    ids, probabilities = distribution(penalise(logits, np.unique(previous), penalty), options)
    ours = np.zeros_like(expected)
    ours[ids] = probabilities
    # float32 in the reference: an id whose cumulative sum falls on the threshold may be in one set and not in the other
    assert np.abs(ours - expected).max() < 2e-6
    assert abs(int((ours > 1e-15).sum()) - int((expected > 1e-15).sum())) <= 1


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=7), Vocabulary(4))
    counts = np.bincount([sampler(logits) for _ in range(20000)], minlength=4) / 20000
    # five standard deviations of the first frequency; a seed fixes the outcome anyway
    assert np.abs(counts - [0.5, 0.3, 0.15, 0.05]).max() < 5 * np.sqrt(0.25 / 20000)


def test_the_seed_fixes_the_draws() -> None:
    logits = random_logits(1000)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed), Vocabulary(1000))
        return [sampler(logits) for _ in range(20)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_greedy_is_argmax_and_small_temperatures_approach_it() -> None:
    logits = random_logits(5000, scale=30)
    assert Sampler(SamplingOptions(), Vocabulary(5000))(logits) == logits.argmax()
    assert Sampler(SamplingOptions(temperature=1e-6, seed=0), Vocabulary(5000))(logits) == logits.argmax()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_unknown_ids_are_never_produced(temperature: float, penalty: float) -> None:
    logits = np.full(300, -20.0, np.float32)
    logits[[250, 299, 40]] = 30.0  # beyond the vocabulary, and a hole
    logits[7] = 0.0
    vocabulary = Vocabulary(200, frozenset({40, 41, 260}))
    sampler = Sampler(SamplingOptions(temperature=temperature, repetition_penalty=penalty, seed=0), vocabulary, prompt_ids=[250, 40, 3])
    assert {sampler(logits) for _ in range(50)} == {7}


def test_repetition_penalty_knows_prompt_and_answer() -> None:
    logits = np.array([3.0, 2.9, 2.8, -1.0], np.float32)
    sampler = Sampler(SamplingOptions(repetition_penalty=2.0), Vocabulary(4), prompt_ids=[0])
    assert [sampler(logits) for _ in range(3)] == [1, 2, 0]  # 0 was in the prompt; 1 and 2 are halved once produced; then 1.5 beats 1.45


@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_ngrams_forbid_what_transformers_does(size: int) -> None:
    rng = np.random.default_rng(size)
    ids: list[int] = []
    ngrams, reference = Ngrams(size), NoRepeatNGramLogitsProcessor(size)
    num_forbidden = 0
    for _ in range(60):
        logits = random_logits(8)
        forbidden = ngrams.forbid(logits)
        if ids:
            np.testing.assert_array_equal(forbidden, reference(torch.tensor([ids]), torch.from_numpy(logits)[None])[0].numpy())
            num_forbidden += int(np.isinf(forbidden).sum())
        ids.append(int(rng.integers(10)))  # 8 and 9, say an image token, are in no answer
        ngrams.push(ids[-1])
    assert (num_forbidden > 0) == (size < 40)
    np.testing.assert_array_equal(Ngrams(size, ids).forbid(logits), ngrams.forbid(logits))


def test_a_circle_is_left_where_it_would_be_whole_again() -> None:
    logits = np.array([[0, 1, 0.5, -1], [-1, 0, 1, 0.5], [1, -1, 0, 0.5], [0, 0, 0, 1]], np.float32)  # by the token before
    said = [0]
    sampler = Sampler(SamplingOptions(no_repeat_ngram_size=3), Vocabulary(4), prompt_ids=said)
    for _ in range(6):
        said.append(sampler(logits[said[-1]]))
    assert said == [0, 1, 2, 0, 1, 3, 3]  # 0 1 2 again it must not be


def test_logits_that_are_not_finite_are_refused() -> None:
    for broken in (np.nan, np.inf):
        logits = random_logits(10)
        logits[4] = broken
        for temperature in (0.0, 1.0):
            with pytest.raises(ValueError, match="float32"):
                Sampler(SamplingOptions(temperature=temperature), Vocabulary(10))(logits)


def test_extreme_values_draw_the_best_without_a_warning() -> None:
    """A temperature that float32 rounds to 0 divided 0 by 0; a large penalty overflowed."""
    logits = np.array([1.0, 3.0, -2.0, 2.5], np.float32)
    for temperature in (1e-320, 1e-38, 1e-6):
        assert Sampler(SamplingOptions(temperature=temperature, seed=0), Vocabulary(4))(logits) == 1
    assert Sampler(SamplingOptions(repetition_penalty=1e308), Vocabulary(4), prompt_ids=[1, 2])(logits) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2.5),
        ("repetition_penalty", 0),
        ("no_repeat_ngram_size", -1),
        ("no_repeat_ngram_size", None),
        ("seed", -1),
        ("seed", 1.0),
    ],
)
def test_wrong_options_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]
