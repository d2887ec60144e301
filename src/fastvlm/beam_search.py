"""Beam search: the most probable answers found so far, from the logits of all of them at once.

    search = BeamSearch(options, vocabulary, eos_token_ids, max_tokens=64, prompt_ids=input_ids)
    tokens, parents = search.step(logits)  # until search.is_done; then search.best

numpy only, as `fastvlm.sampling` is; the loop over the runtime is in `fastvlm.generate`.
"""

from typing import TYPE_CHECKING

import numpy as np

from fastvlm.sampling import Ngrams, Vocabulary, penalise

if TYPE_CHECKING:
    from fastvlm.generate import GenerationOptions


class BeamSearch:
    """Beam search over one prompt, with the rules of transformers' `generate(num_beams=k, do_sample=False)`."""

    def __init__(
        self,
        options: "GenerationOptions",
        vocabulary: Vocabulary,
        eos_token_ids: frozenset[int],
        max_tokens: int,
        prompt_ids: np.ndarray,
    ):
        self._options = options
        self._vocabulary = vocabulary
        self._eos = np.array(sorted(eos_token_ids), np.int64)
        self._max_tokens = max_tokens
        self._prompt_ids = prompt_ids
        self._tokens: list[list[int]] = [[]]  # of the running beams, best first
        self._scores = np.zeros(1, np.float32)  # their summed log-probabilities
        self._finished: list[tuple[float, list[int]]] = []  # at most num_beams, best first, by score over length
        self.is_done = False

    @property
    def best(self) -> list[int]:
        """The tokens of the best complete beam, or of the best running one."""
        return self._finished[0][1] if self._finished else self._tokens[0]

    def step(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits (B, V) of the running beams -> the tokens they go on with and the beam that each continues."""
        options, num_beams = self._options, self._options.num_beams
        totals = self._log_probabilities(logits) + self._scores[:, None]  # (B, V)
        # Enough that num_beams are left to run on if every end token is among them.
        num_candidates = min(max(2, 1 + len(self._eos)) * num_beams, totals.size)
        flat = totals.ravel()
        candidates = np.argpartition(flat, -num_candidates)[-num_candidates:]
        candidates = candidates[np.lexsort((candidates, -flat[candidates]))]
        scores = flat[candidates]
        parents, tokens = np.divmod(candidates, totals.shape[1])
        length = len(self._tokens[0]) + 1
        ends = np.isin(tokens, self._eos) | (length >= self._max_tokens)

        norm = float(length) ** options.length_penalty
        for rank in range(min(num_beams, num_candidates)):  # candidates of lower rank only stand by
            if ends[rank] and np.isfinite(scores[rank]):
                sequence = [*self._tokens[parents[rank]], int(tokens[rank])]
                self._finished.append((float(scores[rank]) / norm, sequence))
        self._finished.sort(key=lambda beam: -beam[0])
        del self._finished[num_beams:]

        running = (~ends & np.isfinite(scores)).nonzero()[0][:num_beams]
        if len(running) == 0 or self._cannot_improve(float(scores[running[0]]), length):
            self.is_done = True
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._tokens = [[*self._tokens[parents[i]], int(tokens[i])] for i in running]
        self._scores = scores[running]
        return tokens[running], parents[running]

    def _cannot_improve(self, best_running: float, length: int) -> bool:
        options = self._options
        if len(self._finished) < options.num_beams:
            return False
        if options.early_stopping is True:
            return True
        if options.early_stopping == "never" and options.length_penalty > 0:
            length = self._max_tokens
        return best_running / float(length) ** options.length_penalty <= self._finished[-1][0]

    def _log_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(B, V) -> (B, size): log-probabilities, penalised, and -inf for ids that are not to be produced."""
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        if not np.isfinite(log_probabilities).any():
            raise ValueError("the model's logits are not finite; run it with dtype float32, or check its weights")
        penalty, ngram_size = self._options.repetition_penalty, self._options.no_repeat_ngram_size
        for row, tokens in enumerate(self._tokens):
            if penalty != 1:
                ids = np.union1d(self._prompt_ids, np.array(tokens, np.int64))
                log_probabilities[row] = penalise(log_probabilities[row], ids[ids < logits.shape[-1]], penalty)
            if ngram_size:
                log_probabilities[row] = Ngrams(ngram_size, [*self._prompt_ids.tolist(), *tokens]).forbid(log_probabilities[row])
        return self._vocabulary.mask(log_probabilities)
