"""From a row of logits to the next token: greedy or drawn, with ids kept out that the tokenizer does not know.

    sampler = Sampler(SamplingOptions(temperature=0.7, top_p=0.9, seed=0), Vocabulary(151646))
    token = sampler(logits)         # (V,) float32 -> int

The filters run in transformers' order (repetition penalty, n-grams, temperature, top-k, top-p) and keep the same ids. numpy only: every
runtime returns numpy, and a greedy step is one argmax.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is picked. None, or the value that changes nothing, switches a filter off."""

    temperature: float = 0.0  # 0 takes the most probable token; of the filters below only the penalty and n-grams then do anything
    top_k: int | None = None  # draw among the k most probable (and those equal to the k-th)
    top_p: float | None = None  # draw among the fewest whose probabilities reach this sum
    repetition_penalty: float = 1.0  # divides the positive and multiplies the negative logits of ids in prompt or answer
    no_repeat_ngram_size: int = 0  # so many tokens in a row never come a second time, those of the prompt included; 0 is off
    seed: int | None = None  # the same seed draws the same tokens; None draws anew each time

    def __post_init__(self) -> None:
        _check(_is_number(self.temperature) and 0 <= self.temperature < float("inf"), self, "temperature", "a number, 0 or more")
        top_k_fits = self.top_k is None or (_is_number(self.top_k) and int(self.top_k) == self.top_k and self.top_k >= 0)
        _check(top_k_fits, self, "top_k", "a whole number, 0 or more (0 is off)")
        _check(self.top_p is None or (_is_number(self.top_p) and 0 < self.top_p <= 1), self, "top_p", "more than 0, at most 1")
        penalty_fits = _is_number(self.repetition_penalty) and 0 < self.repetition_penalty < float("inf")
        _check(penalty_fits, self, "repetition_penalty", "a number above 0 (1 is off)")
        _check(is_count(self.no_repeat_ngram_size), self, "no_repeat_ngram_size", "a whole number, 0 or more (0 is off)")
        _check(self.seed is None or is_count(self.seed), self, "seed", "a whole number, 0 or more")


def is_count(value: object) -> bool:
    """A whole number, 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _check(fits: bool, options: SamplingOptions, name: str, wanted: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {getattr(options, name)!r}; expected {wanted}")


@dataclass(frozen=True)
class Vocabulary:
    """The ids that may be produced: below `size` and not in `holes`.

    The head of a checkpoint often has more rows than the tokenizer has ids (151936 against 151646); random or quantised
    weights do pick such a row, and its text would be nothing.
    """

    size: int
    holes: frozenset[int] = frozenset()
    hole_ids: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hole_ids", np.array(sorted(i for i in self.holes if 0 <= i < self.size), np.int64))

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """Logits (..., V) -> a copy (..., size) in which holes are -inf."""
        allowed = logits[..., : self.size].astype(np.float32, copy=True)
        allowed[..., self.hole_ids] = -np.inf
        return allowed

    def argmax(self, logits: np.ndarray) -> int:
        """The most probable id of one row (V,); copies nothing unless a hole wins."""
        token = int(logits[: self.size].argmax())
        if token in self.holes:
            token = int(self.mask(logits).argmax())
        if not np.isfinite(logits[token]):
            raise ValueError("the model's logits are not finite; run it with dtype float32, or check its weights")
        return token


class Ngrams:
    """The tokens of a row, `size` at a time: which ids would make it say `size` of them in a row again."""

    def __init__(self, size: int, ids: Iterable[int] = ()):
        self._last: deque[int] = deque(maxlen=size - 1)
        self._followers: dict[tuple[int, ...], set[int]] = {}
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        if len(self._last) == self._last.maxlen:
            self._followers.setdefault(tuple(self._last), set()).add(token)
        self._last.append(token)

    def forbid(self, logits: np.ndarray) -> np.ndarray:
        """Logits (V,), a copy with -inf in the ids' places if there are any."""
        ids = [token for token in self._followers.get(tuple(self._last), ()) if token < len(logits)]
        if ids:
            logits = logits.copy()
            logits[ids] = -np.inf
        return logits


class Sampler:
    """Picks the tokens of one row; holds its random state and what a repetition penalty and n-grams have to know of the row."""

    def __init__(self, options: SamplingOptions, vocabulary: Vocabulary, prompt_ids: Iterable[int] = ()):
        self.options = options
        self.vocabulary = vocabulary
        self._generator = np.random.default_rng(options.seed)
        needs_prompt = options.repetition_penalty != 1 or options.no_repeat_ngram_size > 0
        ids = np.fromiter(prompt_ids if needs_prompt else (), np.int64)
        self._is_penalised = np.zeros(0, bool)
        if options.repetition_penalty != 1:
            self._is_penalised = np.zeros(vocabulary.size, bool)
            self._is_penalised[ids[ids < vocabulary.size]] = True
        self._ngrams = Ngrams(options.no_repeat_ngram_size, ids.tolist()) if options.no_repeat_ngram_size else None

    def __call__(self, logits: np.ndarray) -> int:
        """The next token from logits (V,) of the last position."""
        options = self.options
        if options.repetition_penalty != 1:
            logits = penalise(self.vocabulary.mask(logits), self._is_penalised.nonzero()[0], options.repetition_penalty)
        if self._ngrams is not None:
            logits = self._ngrams.forbid(logits)
        if options.temperature == 0:
            token = self.vocabulary.argmax(logits)
        else:
            ids, probabilities = distribution(self.vocabulary.mask(logits), options)
            cumulative = probabilities.cumsum()
            place = int(cumulative.searchsorted(self._generator.random() * cumulative[-1], side="right"))
            token = int(ids[min(place, len(ids) - 1)])
        if options.repetition_penalty != 1:
            self._is_penalised[token] = True
        if self._ngrams is not None:
            self._ngrams.push(token)
        return token


def penalise(logits: np.ndarray, ids: np.ndarray, penalty: float) -> np.ndarray:
    """Logits (V,) with those of `ids` made less probable (CTRL, arXiv 1909.05858)."""
    logits = logits.copy()
    picked = logits[ids]
    with np.errstate(over="ignore"):  # to -inf: an extreme penalty forbids
        logits[ids] = np.where(picked < 0, picked * penalty, picked / penalty)
    return logits


def distribution(logits: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray, np.ndarray]:
    """What a draw chooses from: ids (K,) and their probabilities (K,) float64, which sum to 1.

    Args:
        logits: (V,), penalised and masked; ids at -inf are never among the K.
        options: temperature above 0, top_k and top_p.
    """
    best = logits.max()  # NaN if one is
    if not np.isfinite(best):
        raise ValueError("the model's logits are not finite; run it with dtype float32, or check its weights")
    temperature = max(np.float32(options.temperature), np.finfo(np.float32).tiny)
    with np.errstate(over="ignore"):  # what a small temperature makes -inf of is never drawn
        scores = (logits - best) / temperature
    least = np.float32(-50)  # exp(-50) is below the 53 bits of a draw; further down exp is slow, and 0 in the end
    if options.top_k and options.top_k < len(scores):
        least = max(least, np.partition(scores, -options.top_k)[-options.top_k])
    ids = (scores >= least).nonzero()[0]
    probabilities = np.exp(scores[ids]).astype(np.float64)
    probabilities /= probabilities.sum()
    if options.top_p is not None and options.top_p < 1:
        kept = _nucleus(probabilities, options.top_p)
        ids, probabilities = ids[kept], probabilities[kept]
        probabilities /= probabilities.sum()
    return ids, probabilities


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Places of the fewest probabilities that reach `top_p`, most probable first."""
    # Sorting 150 k probabilities takes 10 ms; the nucleus is nearly always among a few hundred.
    count = len(probabilities)
    for num_candidates in (256, 8192, count):
        if num_candidates >= count:
            places = np.arange(count)
            break
        places = np.argpartition(probabilities, -num_candidates)[-num_candidates:]
        if probabilities[places].sum() >= top_p:
            break
    places = places[np.lexsort((places, -probabilities[places]))]
    before = np.concatenate(([0.0], probabilities[places].cumsum()[:-1]))
    return places[before < top_p]
