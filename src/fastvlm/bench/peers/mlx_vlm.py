"""mlx-vlm's FastVLM on the CPU, at a small picture: MLX is made for Apple's GPU, and on a CPU its convolutions take minutes at 1024.

Its own random weights of the same sizes; ours is run at the same resolution in the same turns.
"""

import time
from typing import Any

from fastvlm.bench.peers import _transformers
from fastvlm.bench.work import Work, WorkError
from fastvlm.config import PATCH_SIZE
from fastvlm.runtimes import is_installed

TITLE = "mlx-vlm on the CPU"
PART = "whole"
INSTALL = 'pip install "fastvlm[bench]"'
RUNS = 1
RESOLUTION = 256


def unavailable_reason() -> str | None:
    missing = [package for package in ("mlx", "mlx_vlm") if not is_installed(package)]
    return f"{' and '.join(missing)} not installed" if missing else None


def variants(work: Work) -> list[str]:
    return [f"float32 at {RESOLUTION}"]


def load(work: Work, variant: str) -> "Program":
    return Program(work)


class Program:
    def __init__(self, work: Work):
        if is_installed("torch"):
            _transformers.prepare(work)  # mlx_vlm imports transformers
        import mlx.core as mx
        import numpy as np
        from mlx_vlm.models import fastvlm

        mx.set_default_device(mx.cpu)
        config = work.checkpoint().config
        text = config.text_config
        names = "model_type hidden_size num_hidden_layers intermediate_size num_attention_heads rms_norm_eps vocab_size num_key_value_heads"
        text_config = fastvlm.TextConfig(
            **{name: getattr(text, name) for name in names.split()}, tie_word_embeddings=text.tie_word_embeddings
        )
        vision_config = fastvlm.VisionConfig()
        for name in ("layers", "embed_dims", "mlp_ratios"):
            setattr(vision_config, name, list(getattr(config.vision_config, name)))
        width = config.vision_config.hidden_size
        self.model = fastvlm.Model(fastvlm.ModelConfig(text_config=text_config, vision_config=vision_config, mm_hidden_size=width))
        self.model.eval()
        self.work, self.mx = work, mx
        words = work.input_ids[work.input_ids != work.image_token_id]
        placeholder = np.array([self.model.config.image_token_index])
        self.input_ids = mx.array(np.concatenate([words[:14], placeholder, words[14:]])[None])
        self.pixel_values = mx.random.uniform(shape=(1, 3, RESOLUTION, RESOLUTION))
        self.image_tokens = (RESOLUTION // PATCH_SIZE) ** 2
        self.facts: dict[str, Any] = {
            "image_tokens": self.image_tokens,
            "prompt_tokens": len(words) + self.image_tokens,
            "note": f"{RESOLUTION} x {RESOLUTION} pixels, both sides; MLX chooses its threads itself",
        }

    def run(self) -> dict[str, Any]:
        from mlx_vlm.models.cache import KVCache

        mx, language_model = self.mx, self.model.language_model
        cache = [KVCache() for _ in self.model.layers]
        start = time.perf_counter()
        embeds = self.model.get_input_embeddings(self.input_ids, self.pixel_values).inputs_embeds
        mx.eval(embeds)
        encoded = time.perf_counter()
        if embeds.shape[1] != self.facts["prompt_tokens"]:
            raise WorkError(f"its prompt has {embeds.shape[1]} tokens, not {self.facts['prompt_tokens']}")
        # As its own generate: the head is computed for the last position only.
        ids = mx.zeros(embeds.shape[:2], dtype=mx.int32)
        language_model(ids[:, :-1], cache=cache, inputs_embeds=embeds[:, :-1])
        mx.eval([layer.state for layer in cache])
        token = language_model(ids[:, -1:], cache=cache, inputs_embeds=embeds[:, -1:]).logits[:, -1].argmax(-1)
        mx.eval(token)
        first = time.perf_counter()
        for _ in range(self.work.max_new_tokens - 1):
            token = language_model(token[None], cache=cache).logits[:, -1].argmax(-1)
            mx.eval(token)
        end = time.perf_counter()
        wanted = self.facts["prompt_tokens"] + self.work.max_new_tokens - 1
        if cache[0].offset != wanted:
            raise WorkError(f"its cache holds {cache[0].offset} tokens at the end, not {wanted}")
        return {
            "ttft_s": first - start,
            "encode_s": encoded - start,
            "prefill_s": first - encoded,
            "per_token_s": (end - first) / (self.work.max_new_tokens - 1),
            "completion_tokens": self.work.max_new_tokens,
        }
