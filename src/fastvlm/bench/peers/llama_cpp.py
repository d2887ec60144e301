"""llama.cpp, the decoder half: the same weights as GGUF, the same embeddings of picture and text, through its C interface.

It has no FastViTHD, so what is compared is the language model alone: from the embedded prompt to the first token, and each token after.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from fastvlm.bench.work import Work, WorkError
from fastvlm.runtimes import is_installed

TITLE = "llama.cpp, decoder alone"
PART = "decoder"
INSTALL = 'pip install "fastvlm[bench]"'
RUNS = None


def unavailable_reason() -> str | None:
    missing = [package for package in ("llama_cpp", "gguf", "torch") if not is_installed(package)]
    return f"{' and '.join(missing)} not installed" if missing else None


def variants(work: Work) -> list[str]:
    return ["Q8_0", "Q4_0"]


def load(work: Work, variant: str) -> "Program":
    checkpoint = work.checkpoint()
    text = checkpoint.config.text_config
    if text.model_type != "qwen2":
        raise WorkError(f"this comparison writes Qwen2 decoders as GGUF, not {text.model_type}")
    path = work.folder / f"{variant}.gguf"
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors()}
    write_gguf(path, text, tensors, variant)
    embeddings = tensors["language_model.embed_tokens.weight"].read().float().numpy()
    features = work.left("image_features")
    if features is None:
        raise WorkError("there are no image features yet; ours runs first")
    embeds = embeddings[np.where(work.input_ids == work.image_token_id, 0, work.input_ids)]
    embeds[work.input_ids == work.image_token_id] = features
    del embeddings
    return Program(work, path, embeds, variant)


def write_gguf(path: Path, text: Any, tensors: dict[str, Any], variant: str) -> None:
    """The decoder with matrices in `variant`'s quantisation, norms and biases in float32."""
    import gguf

    kind = gguf.GGMLQuantizationType[variant]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_freq_base(text.rope.rope_theta)
    writer.add_vocab_size(text.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{variant}"])
    from fastvlm.checkpoint.gguf import KEYS

    for name, tensor in tensors.items():
        inside = name.removeprefix("language_model.")
        if inside == name and name != "lm_head.weight":
            continue
        if name == "lm_head.weight" and text.tie_word_embeddings:
            continue
        stored = KEYS.stored(inside)
        assert stored is not None, name
        value = tensor.read().float().numpy()
        if value.ndim == 2:
            # ggml wants the head in more bits than the rest below eight, as llama.cpp's own quantiser does
            wanted = gguf.GGMLQuantizationType.Q8_0 if stored.startswith(("token_embd", "output.")) else kind
            writer.add_tensor(stored, gguf.quants.quantize(value, wanted), raw_dtype=wanted)
        else:
            writer.add_tensor(stored, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Program:
    def __init__(self, work: Work, path: Path, embeds: np.ndarray, variant: str):
        import llama_cpp

        self.api, self.work, self.embeds = llama_cpp, work, np.ascontiguousarray(embeds, np.float32)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise WorkError("llama.cpp cannot read the GGUF that was written for it")
        count = len(embeds)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = count + work.max_new_tokens + 8
        params.n_batch = params.n_ubatch = max(512, count)
        params.n_threads = params.n_threads_batch = work.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(count, self.embeds.shape[1], 1)
        self.facts: dict[str, Any] = {
            "parameters": int(llama_cpp.llama_model_n_params(self.model)),
            "prompt_tokens": count,
            "system": llama_cpp.llama_print_system_info().decode().strip(),
            "weights": f"{variant}, embedding and head Q8_0",
        }
        work.check(prompt_tokens=count)
        logits = self._prefill()
        if self._columns() != count:
            raise WorkError(f"its cache holds {self._columns()} tokens after a prompt of {count}")
        work.leave(f"logits-llama-{variant}", logits)
        self.facts["logits"] = f"logits-llama-{variant}"

    def _columns(self) -> int:
        return self.api.llama_memory_seq_pos_max(self.api.llama_get_memory(self.context), 0) + 1

    def _prefill(self) -> np.ndarray:
        """Read the embedded prompt into an empty cache; logits of the last position (V,)."""
        import ctypes

        api, batch, count = self.api, self.batch, len(self.embeds)
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        ctypes.memmove(batch.embd, self.embeds.ctypes.data, self.embeds.nbytes)
        batch.n_tokens = count
        for index in range(count):
            batch.pos[index], batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = index, 1, 0, index == count - 1
        return self._decode(batch, count - 1)

    def _decode(self, batch: Any, row: int) -> np.ndarray:
        status = self.api.llama_decode(self.context, batch)
        if status:
            raise WorkError(f"llama_decode ended with status {status}")
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, row), (self.vocab_size,)).copy()

    def run(self) -> dict[str, Any]:
        api = self.api
        start = time.perf_counter()
        token = int(self._prefill().argmax())
        first = time.perf_counter()
        ids = (api.llama_token * 1)()
        for _ in range(self.work.max_new_tokens - 1):
            ids[0] = token
            token = int(self._decode(api.llama_batch_get_one(ids, 1), 0).argmax())
        end = time.perf_counter()
        wanted = self.work.prompt_tokens + self.work.max_new_tokens - 1
        if self._columns() != wanted:
            raise WorkError(f"its cache holds {self._columns()} tokens at the end, not {wanted}")
        steps = self.work.max_new_tokens - 1
        return {
            "ttft_s": first - start,
            "prefill_s": first - start,
            "per_token_s": (end - first) / steps if steps else None,
            "completion_tokens": self.work.max_new_tokens,
        }
