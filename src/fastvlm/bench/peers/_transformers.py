"""What the peers that transformers runs have in common: building, timing `generate`, checking what it worked on."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvlm.bench.work import Work, WorkError
from fastvlm.runtimes import is_installed

if TYPE_CHECKING:
    import torch

INSTALL = 'pip install "fastvlm[bench]"'
_kept: list[object] = []


def unavailable_reason() -> str | None:
    missing = [package for package in ("torch", "transformers", "timm") if not is_installed(package)]
    return f"{' and '.join(missing)} not installed" if missing else None


def prepare(work: Work) -> None:
    """Threads as everybody; a torchvision whose operators do not load (built for another torch) still imports."""
    import torch

    torch.set_num_threads(work.threads)
    if is_installed("torchvision"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        _kept.append(library)  # what it defines goes away with it
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import transformers

    transformers.logging.set_verbosity_error()


class _Clock:
    """A streamer for `generate`: notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._is_prompt = True

    def put(self, value: "torch.Tensor") -> None:
        if self._is_prompt:  # generate hands in the prompt first
            self._is_prompt = False
        else:
            self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Program:
    """A transformers model that answers.

    Args:
        first, last: the modules between whose start and end pictures are encoded.
        inputs: of `generate`; `input_ids` (1, S) among them.
    """

    def __init__(self, work: Work, model: Any, first: Any, last: Any, inputs: dict[str, Any], image_tokens: int, note: str | None = None):
        self.work, self.model, self.inputs = work, model.eval(), inputs
        self.image_tokens = image_tokens
        self._encoding: list[float] = []
        first.register_forward_pre_hook(lambda *_: self._encoding.append(time.perf_counter()))
        last.register_forward_hook(lambda *_: self._encoding.append(time.perf_counter()))
        parameters = list(model.parameters())
        self.facts: dict[str, Any] = {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "dtype": str(parameters[0].dtype).removeprefix("torch."),
            "attention": model.config.get_text_config()._attn_implementation,
            "image_tokens": image_tokens,
            "prompt_tokens": int(inputs["input_ids"].shape[1]),
        }
        if note:
            self.facts["note"] = note

    def check_parameters(self, published: int) -> None:
        """The model is the published one, but for the values of its weights."""
        if self.facts["parameters"] != published:
            raise WorkError(f"it has {self.facts['parameters']:,} parameters and the published model {published:,}")

    def check_prefill(self) -> np.ndarray:
        """Prefill once: the cache must hold as many columns as the prompt has tokens. Returns the last position's logits (V,)."""
        import torch

        with torch.inference_mode():
            output = self.model(**self.inputs, use_cache=True, logits_to_keep=1)
        columns = output.past_key_values.get_seq_length()
        if columns != self.facts["prompt_tokens"]:
            raise WorkError(f"its cache holds {columns} tokens after a prompt of {self.facts['prompt_tokens']}")
        return output.logits[0, -1].float().numpy()

    def run(self) -> dict[str, Any]:
        import torch

        clock = _Clock()
        self._encoding.clear()
        with torch.inference_mode():
            start = time.perf_counter()
            ids = self.model.generate(
                **self.inputs,
                max_new_tokens=self.work.max_new_tokens,
                min_new_tokens=self.work.max_new_tokens,
                do_sample=False,
                streamer=clock,
                pad_token_id=0,
            )
        count = int(ids.shape[1]) - self.facts["prompt_tokens"]
        if len(clock.times) != count or count != self.work.max_new_tokens:
            raise WorkError(f"it produced {count} tokens, not {self.work.max_new_tokens}")
        if len(self._encoding) < 2:
            raise WorkError("its vision tower was not run")
        encode = self._encoding[-1] - self._encoding[0]
        ttft = clock.times[0] - start
        return {
            "ttft_s": ttft,
            "encode_s": encode,
            "prefill_s": ttft - encode,
            "per_token_s": (clock.times[-1] - clock.times[0]) / (count - 1) if count > 1 else None,
            "completion_tokens": count,
        }
