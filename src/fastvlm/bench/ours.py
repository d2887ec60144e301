"""fastvlm itself, measured as the peers are. Every run is a first question: the caches that make second ones cheap are off."""

import sys
import time
from typing import Any

import numpy as np

from fastvlm.bench.work import Work, WorkError

BATCH = 8


class Program:
    def __init__(self, work: Work):
        from fastvlm.vlm import FastVLM, load

        start = time.perf_counter()
        loaded = load(work.model, **work.load_options)
        self.load_s = time.perf_counter() - start
        self.work = work
        self.vlm = FastVLM(loaded.processor, loaded.runtime, feature_cache_bytes=0, prefix_cache_bytes=0)
        self.pixel_values = work.pixel_values()
        self._resized: tuple[str, np.ndarray, np.ndarray] | None = None  # side, ids, pixels
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

    def at(self, side: str) -> dict[str, Any]:
        """As `run`, with the picture brought to another size."""
        if self._resized is None or self._resized[0] != side:
            inputs = self.vlm.processor(self.work.messages, resolution=int(side))
            self._resized = (side, inputs.input_ids.reshape(-1), inputs.image_groups[0])
        input_ids, pixel_values = self._resized[1:]
        return answer(self.vlm, self.work, pixel_values, input_ids)

    def preprocess(self) -> dict[str, Any]:
        """The picture's file decoded, brought to size, the text tokenised: each once."""
        from fastvlm.image_io import load_image

        processor = self.vlm.processor
        marks = [time.perf_counter()]
        image = load_image(self.work.picture, processor.image_limits)
        marks.append(time.perf_counter())
        processor.image_processor(image)
        marks.append(time.perf_counter())
        processor([{"role": "user", "content": [{"type": "text", "text": self.work.prompt}]}])
        marks.append(time.perf_counter())
        return {
            "decode_picture_s": marks[1] - marks[0],
            "resize_s": marks[2] - marks[1],
            "tokenize_s": marks[3] - marks[2],
            "picture_size": list(image.size),
        }

    def second_question(self) -> dict[str, Any]:
        """Another question about a picture just seen, with the caches on: its time to the first token."""
        from fastvlm.generate import GenerationOptions
        from fastvlm.vlm import FastVLM

        content = [self.work.messages[0]["content"][0], {"type": "text", "text": f"And then: {self.work.prompt}"}]
        inputs = self.vlm.processor([{"role": "user", "content": content}], resolution=self.work.load_options["resolution"])
        cached = FastVLM(self.vlm.processor, self.vlm.runtime)
        first = answer(cached, self.work, self.pixel_values)
        start = time.perf_counter()
        result = cached.engine.generate(inputs, GenerationOptions(max_new_tokens=2))
        seconds = time.perf_counter() - start - result.timings.decode_s
        return {"first_ttft_s": first["ttft_s"], "second_ttft_s": seconds, "cached_tokens": result.timings.cached_tokens}

    def streaming(self) -> dict[str, Any]:
        """A streamed answer from its second token on: by the wall clock, and the model's own steps in it."""
        from fastvlm.generate import GenerationOptions
        from fastvlm.processor import ModelInputs
        from fastvlm.vlm import FastVLM

        runtime = _TimedSteps(self.vlm.runtime)
        inputs = ModelInputs(input_ids=self.work.input_ids[None], image_groups=[self.pixel_values])
        vlm = FastVLM(self.vlm.processor, runtime, feature_cache_bytes=0, prefix_cache_bytes=0)
        for _ in vlm.engine.stream(inputs, GenerationOptions(max_new_tokens=self.work.max_new_tokens)):
            pass
        if runtime.started is None:
            return {"stream_s": None, "steps_s": None}
        return {"stream_s": time.perf_counter() - runtime.started, "steps_s": runtime.decode_s}

    def batch(self) -> dict[str, Any]:
        """Eight answers decoded together, and one."""
        from fastvlm.generate import GenerationOptions
        from fastvlm.processor import ModelInputs
        from fastvlm.vlm import FastVLM

        cached = FastVLM(self.vlm.processor, self.vlm.runtime)  # encodes the picture once
        options = GenerationOptions(max_new_tokens=self.work.max_new_tokens)
        inputs = [ModelInputs(input_ids=self.work.input_ids[None], image_groups=[self.pixel_values])] * BATCH
        one = cached.engine.generate(inputs[0], options).timings
        many = cached.engine.generate_batch(inputs, options, batch_size=BATCH)
        return {
            "batch_size": BATCH,
            "one_decode_s": one.decode_s,
            "batch_decode_s": many[0].timings.decode_s,
            "tokens_per_s": sum(result.timings.completion_tokens - 1 for result in many) / many[0].timings.decode_s,
        }


class _TimedSteps:
    """A runtime that sums the seconds of its decoding steps."""

    def __init__(self, runtime: Any):
        self._runtime = runtime
        self.started: float | None = None
        self.decode_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def decode(self, tokens: np.ndarray, cache: Any) -> np.ndarray:
        start = time.perf_counter()
        self.started = start if self.started is None else self.started
        logits = self._runtime.decode(tokens, cache)
        self.decode_s += time.perf_counter() - start
        return logits


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
    if timings.prompt_tokens != len(ids):
        raise WorkError(f"it read {timings.prompt_tokens} tokens, not {len(ids)}")
    return {
        "ttft_s": seconds - timings.decode_s,
        "encode_s": timings.encode_s,
        "prefill_s": timings.prefill_s,
        "first_token_s": seconds - timings.decode_s - timings.encode_s - timings.prefill_s,
        "per_token_s": timings.per_token_s or None,
        "image_tokens": timings.image_tokens,
        "completion_tokens": timings.completion_tokens,
        "cached_tokens": timings.cached_tokens,
    }


def describe_runtime(runtime: Any) -> dict[str, Any]:
    """What a runtime says of itself: its name and the precision it computes in."""
    precision = getattr(runtime, "precision", None)
    if precision is None and hasattr(runtime, "model"):  # the torch runtime's
        precision = str(runtime.model.multi_modal_projector.linear_1.weight.dtype).removeprefix("torch.")
    return {"runtime": runtime.name, "precision": precision, "imports_torch": "torch" in sys.modules}
