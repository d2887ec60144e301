"""fastvlm itself, measured as the peers are. Every run is a first question: the caches that make second ones cheap are off."""

import sys
import time
from typing import Any

import numpy as np

from fastvlm.bench.work import Work


class Program:
    def __init__(self, work: Work):
        from fastvlm.vlm import FastVLM, load

        start = time.perf_counter()
        loaded = load(work.model, **work.load_options)
        self.load_s = time.perf_counter() - start
        self.work = work
        self.vlm = FastVLM(loaded.processor, loaded.runtime, feature_cache_bytes=0, prefix_cache_bytes=0)
        self.cached = FastVLM(loaded.processor, loaded.runtime)
        self.pixel_values = work.pixel_values()
        self.facts = {"load_s": self.load_s, **describe_runtime(loaded.runtime), **self._first_logits()}

    def _first_logits(self) -> dict[str, Any]:
        """Leave features and logits for the peers that compute the same, and check the counts on the way."""
        work, runtime = self.work, self.vlm.runtime
        features = runtime.encode_images(self.pixel_values)
        work.check(image_tokens=features.shape[0] * features.shape[1])
        logits, cache = runtime.prefill([work.input_ids], [features.reshape(-1, features.shape[-1])])
        work.check(prompt_tokens=int(cache.length))
        work.leave("image_features", features.reshape(-1, features.shape[-1]))
        work.leave("logits-ours", logits[0])
        return {"image_features_shape": list(features.shape), "logits_shape": list(logits.shape)}

    def run(self) -> dict[str, Any]:
        return answer(self.vlm, self.work, self.pixel_values)


def load(work: Work, variant: str) -> Program:
    return Program(work)


def answer(vlm: Any, work: Work, pixel_values: np.ndarray, input_ids: np.ndarray | None = None) -> dict[str, Any]:
    """One answer from pixels in memory; `ttft_s` is by the wall clock, from the call to the first token."""
    from fastvlm.generate import GenerationOptions
    from fastvlm.processor import ModelInputs

    ids = work.input_ids if input_ids is None else input_ids
    inputs = ModelInputs(input_ids=ids[None], image_groups=[pixel_values])
    start = time.perf_counter()
    result = vlm.engine.generate(inputs, GenerationOptions(max_new_tokens=work.max_new_tokens))
    seconds = time.perf_counter() - start
    timings = result.timings
    work.check(image_tokens=timings.image_tokens, prompt_tokens=timings.prompt_tokens)
    return {
        "ttft_s": seconds - timings.decode_s,
        "encode_s": timings.encode_s,
        "prefill_s": timings.prefill_s,
        "first_token_s": seconds - timings.decode_s - timings.encode_s - timings.prefill_s,
        "per_token_s": timings.per_token_s or None,
        "completion_tokens": timings.completion_tokens,
        "cached_tokens": timings.cached_tokens,
    }


def describe_runtime(runtime: Any) -> dict[str, Any]:
    """What a runtime says of itself: its name and the precision it computes in."""
    precision = getattr(runtime, "precision", None)
    if precision is None and hasattr(runtime, "model"):  # the torch runtime's
        precision = str(runtime.model.multi_modal_projector.linear_1.weight.dtype).removeprefix("torch.")
    return {"runtime": runtime.name, "precision": precision, "imports_torch": "torch" in sys.modules}
