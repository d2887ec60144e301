"""The accuracy guard: how far a bundle is from the float32 model, measured before anybody uses it.

    reference = Reference(samples)
    reference.encode(encoder); reference.embed(table, config); reference.layer(layer) ...; reference.head(head)
    rows = measure(runtime, reference)          # the table
    refused = [row for row in rows if not row["passed"]]

The reference is computed while the converter has each layer in memory anyway, so it needs no room for the whole model.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fastvlm.config import FastVLMConfig
from fastvlm.convert._pictures import Sample
from fastvlm.convert._progress import progress
from fastvlm.generate import Engine, GenerationOptions
from fastvlm.model.decoder import Decoder, causal_mask
from fastvlm.processor import Processor
from fastvlm.runtimes import Runtime, is_installed
from fastvlm.runtimes._bundled import prompt_arrays

MIN_COSINE, MIN_AGREEMENT, MAX_SCORE_LOSS = 0.99, 0.95, 0.01
TASK = "documents"
ANSWER_TOKENS = 48


class Reference:
    """What the float32 model makes of the samples.

    Attributes:
        features: for each sample (N, T, D).
        tokens: for each sample (positions,), the most probable token at each place.
    """

    def __init__(self, samples: Sequence[Sample]):
        self.samples = list(samples)
        self.features: list[np.ndarray] = []
        self.tokens: list[np.ndarray] = []
        self._hidden: list[torch.Tensor] = []

    @torch.no_grad()
    def encode(self, encoder: nn.Module) -> None:
        bar = progress(self.samples, "reference features", "picture")
        self.features = [np.concatenate([encoder(torch.from_numpy(tile[None])).numpy() for tile in sample.pixel_values]) for sample in bar]

    def embed(self, table: Any, config: FastVLMConfig) -> None:
        for sample, features in zip(self.samples, self.features, strict=True):
            ids = np.concatenate((sample.input_ids, sample.forced_ids[:-1]))
            embeds, _ = prompt_arrays(table, [ids], [features], config.image_token_id)
            self._hidden.append(torch.from_numpy(embeds))

    @torch.no_grad()
    def layer(self, decoder: Decoder, layer: Any, window: int | None) -> None:
        for number, hidden in enumerate(self._hidden):
            length = hidden.shape[1]
            cos, sin = decoder.rotary(torch.arange(length)[None])
            self._hidden[number] = layer(hidden, cos, sin, causal_mask(length, length, None, window, hidden.device), None)

    @torch.no_grad()
    def head(self, head: nn.Module) -> None:
        for sample, hidden in zip(self.samples, self._hidden, strict=True):
            self.tokens.append(head(hidden[:, -len(sample.forced_ids) :])[0].argmax(-1).numpy())
        self._hidden = []


def measure(runtime: Runtime, reference: Reference) -> list[dict[str, Any]]:
    """Feature cosine and next-token agreement of `runtime` with the reference."""
    samples = reference.samples
    features = [runtime.encode_images(sample.pixel_values) for sample in progress(samples, "bundle's features", "picture")]
    cosines = np.concatenate([cosine(ours, theirs).ravel() for ours, theirs in zip(features, reference.features, strict=True)])
    forced = np.stack([sample.forced_ids for sample in samples])
    logits, cache = runtime.prefill([sample.input_ids for sample in samples], features)
    tokens = [logits.argmax(-1)]
    steps = progress(range(forced.shape[1] - 1), "bundle's tokens", "step")
    tokens += [runtime.decode(forced[:, step], cache).argmax(-1) for step in steps]
    agrees = np.stack(tokens, axis=1) == np.stack(reference.tokens)
    return [
        _row("mean cosine of image features", float(cosines.mean()), cosines.size, least=MIN_COSINE),
        _row("lowest cosine of image features", float(cosines.min()), cosines.size),
        _row("agreement of the next token", float(agrees.mean()), agrees.size, least=MIN_AGREEMENT),
    ]


def score(runtime: Runtime, processor: Processor, questions: int) -> float:
    """Mean score on short questions about held-out documents."""
    from fastvlm.evaluate.metrics import METRICS

    engine = Engine(runtime, processor, prefix_cache_bytes=0)
    scores: list[float] = []
    for batch in progress(_batches(processor, questions), f"questions to {runtime.name}", "batch"):
        results = engine.generate_batch([processor(example.messages) for example in batch], GenerationOptions(max_new_tokens=ANSWER_TOKENS))
        scores += [METRICS[example.metric](result.text, example.answers) for example, result in zip(batch, results, strict=True)]
    return float(np.mean(scores))


def score_rows(ours: float, reference: float, questions: int) -> list[dict[str, Any]]:
    return [
        _row(f"score on {TASK}, float32", reference, questions),
        _row(f"score on {TASK}, this bundle", ours, questions),
        _row("loss of score", reference - ours, questions, most=MAX_SCORE_LOSS),
    ]


def can_score() -> bool:
    return is_installed("rapidfuzz")


def _batches(processor: Processor, questions: int) -> Iterator[list[Any]]:
    """Short questions; those about one picture come one after the other, so that it is encoded once."""
    from fastvlm.evaluate.tasks import documents

    size = 512 if processor.image_processor.size <= 512 else 768
    batch: list[Any] = []
    count = 0
    for example in documents.examples("heldout", {"size": size, "questions": 4}):
        if example.metric == "cer":  # the whole text, a thousand tokens
            continue
        batch.append(example)
        count += 1
        if len(batch) == 8 or count == questions:
            yield batch
            batch = []
        if count == questions:
            return


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows, for people."""
    lines = []
    for row in rows:
        limit = f"at least {row['least']}" if row["least"] is not None else f"at most {row['most']}" if row["most"] is not None else ""
        verdict = "" if not limit else "passed" if row["passed"] else "REFUSED"
        lines.append(f"{row['measure']:<34} {row['value']:8.4f}  n={row['count']:<7} {limit:<14} {verdict}".rstrip())
    return "\n".join(lines)


def _row(measure: str, value: float, count: int, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    # a NaN passes nothing
    passed = (least is None or value >= least) and (most is None or value <= most)
    return {"measure": measure, "value": value, "count": int(count), "least": least, "most": most, "passed": passed}


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of vectors (..., D): (...)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1) + 1e-30)
