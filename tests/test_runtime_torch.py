"""The torch runtime against plain forward passes of the model, peft, and hand-made machines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm.model.fastvlm import FastVLMModel
from fastvlm.runtimes import RuntimeUnavailableError, choose_runtime, default_threads, load_runtime
from fastvlm.runtimes import torch as torch_plugin
from fastvlm.runtimes._lora import AdapterError, merge_adapter
from fastvlm.runtimes.torch import TorchRuntime
from prompt_rows import make_prompt, make_rows

VOCAB_SIZE, IMAGE_TOKEN_ID = 128, 127
QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
MISTRAL = {**QWEN2, "model_type": "mistral", "sliding_window": 6}
GPT_NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
}
GEMMA = {**QWEN2, "model_type": "gemma", "head_dim": 8, "tie_word_embeddings": True}
# no heads, no longest context, a state in place of keys and values
FALCON_MAMBA = {"model_type": "falcon_mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": QWEN2["vocab_size"], "state_size": 8}
TEXT_CONFIGS = [QWEN2, MISTRAL, GPT_NEOX, GEMMA, FALCON_MAMBA]


def tiny_model(text_config: dict = QWEN2, seed: int = 0) -> FastVLMModel:
    torch.manual_seed(seed)
    text = TextConfig.from_dict(text_config)
    vision = VisionConfig(layers=(1, 1, 1, 1, 1), embed_dims=(8, 16, 32, 64, 128), mlp_ratios=(2, 2, 2, 2, 2))
    model = FastVLMModel(FastVLMConfig(vision, text, IMAGE_TOKEN_ID, text.tie_word_embeddings)).eval()
    with torch.no_grad():
        for parameter in model.language_model.parameters():  # wide enough that a wrong position or mask shows in the logits
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module", params=TEXT_CONFIGS, ids=lambda config: config["model_type"])
def runtime(request: pytest.FixtureRequest) -> TorchRuntime:
    torch.set_num_threads(1)
    return TorchRuntime(tiny_model(request.param))


ROWS = make_rows(IMAGE_TOKEN_ID)


def uncached_logits(runtime: TorchRuntime, ids: np.ndarray, features: np.ndarray | None) -> np.ndarray:
    """(S, V), one plain pass without a cache."""
    return runtime.logits(ids[None], features)[0]


def test_cached_decoding_is_one_plain_pass(runtime: TorchRuntime) -> None:
    for ids, features in ROWS:
        continuation = np.random.default_rng(9).integers(0, IMAGE_TOKEN_ID, 10)
        expected = uncached_logits(runtime, np.concatenate((ids, continuation)), features)
        logits, cache = runtime.prefill([ids], [features])
        np.testing.assert_allclose(logits[0], expected[len(ids) - 1], atol=1e-4)
        for step, token in enumerate(continuation):
            logits = runtime.decode(np.array([token]), cache)
            np.testing.assert_allclose(logits[0], expected[len(ids) + step], atol=1e-4)
        assert cache.length == len(ids) + len(continuation)


def test_batch_of_unequal_rows_is_one_by_one(runtime: TorchRuntime) -> None:
    continuation = np.random.default_rng(5).integers(0, IMAGE_TOKEN_ID, (len(ROWS), 8))
    logits, cache = runtime.prefill([ids for ids, _ in ROWS], [features for _, features in ROWS])
    steps = [logits, *(runtime.decode(continuation[:, step], cache) for step in range(8))]
    for row, (ids, features) in enumerate(ROWS):
        expected = uncached_logits(runtime, np.concatenate((ids, continuation[row])), features)[len(ids) - 1 :]
        np.testing.assert_allclose(np.stack([step[row] for step in steps]), expected, atol=1e-4)


def test_rows_can_be_dropped_repeated_and_swapped(runtime: TorchRuntime) -> None:
    ids, features = zip(*ROWS, strict=True)
    _, cache = runtime.prefill(ids, features)
    cache = runtime.reorder(cache, np.array([3, 1, 1]))
    logits = runtime.decode(np.array([5, 6, 7]), cache)
    for result, row, token in zip(logits, (3, 1, 1), (5, 6, 7), strict=True):
        np.testing.assert_allclose(result, uncached_logits(runtime, np.append(ids[row], token), features[row])[-1], atol=1e-4)


def test_a_cache_takes_more_text_and_images(runtime: TorchRuntime) -> None:
    first, second = make_prompt(9, 1, 6, IMAGE_TOKEN_ID), make_prompt(14, 2, 7, IMAGE_TOKEN_ID)
    expected = uncached_logits(runtime, np.concatenate((first[0], second[0])), np.concatenate((first[1], second[1])))
    _, cache = runtime.prefill([first[0]], [first[1]])
    logits, cache = runtime.prefill([second[0]], [second[1]], cache)
    np.testing.assert_allclose(logits[0], expected[-1], atol=1e-4)


def test_a_trimmed_cache_forgets(runtime: TorchRuntime) -> None:
    ids, features = make_prompt(15, 1, 8, IMAGE_TOKEN_ID)
    _, cache = runtime.prefill([ids], [features])
    runtime.decode(np.array([3]), cache)
    try:
        cache = runtime.trim(cache, 10)
    except NotImplementedError:  # what the contract allows to transformers' caches; whoever trims then prefills anew
        assert runtime.config.text_config.foreign
        return
    other = np.array([11, 12, 13])
    logits, cache = runtime.prefill([other], [None], cache)
    expected = uncached_logits(runtime, np.concatenate((ids[:10], other)), features)[-1]
    np.testing.assert_allclose(logits[0], expected, atol=1e-4)


def test_a_cache_grows_past_its_first_capacity() -> None:
    runtime = TorchRuntime(tiny_model({**QWEN2, "max_position_embeddings": 2048}))
    ids = np.random.default_rng(0).integers(0, IMAGE_TOKEN_ID, 300)
    _, cache = runtime.prefill([ids[:1]], [None])
    for token in ids[1:-1]:
        runtime.decode(np.array([token]), cache)
    np.testing.assert_allclose(runtime.decode(ids[-1:], cache)[0], uncached_logits(runtime, ids, None)[-1], atol=1e-4)


def test_images_encode_alike_alone_and_together() -> None:
    model = tiny_model()
    runtime = TorchRuntime(model)
    pixels = np.random.default_rng(0).random((6, 3, 128, 192), np.float32)  # more than go through the tower at once
    with torch.no_grad():
        expected = torch.cat([model.encode_images(torch.from_numpy(image[None])) for image in pixels]).numpy()
    features = runtime.encode_images(pixels)
    assert features.shape == (6, 2 * 3, 32)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert runtime.vision_features(pixels).shape == (6, 2 * 3, 256)


@pytest.mark.parametrize("shape", [(3, 64, 64), (0, 3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 100)])
def test_pixels_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pixel_values"):
        TorchRuntime(tiny_model()).encode_images(np.zeros(shape, np.float32))


class Source:
    """As much of a checkpoint as the runtime asks for."""

    context_length = 200

    def load_model(self, dtype: torch.dtype, device: torch.device) -> FastVLMModel:
        return tiny_model().to(device, dtype)


def test_the_checkpoint_sets_the_context() -> None:
    assert load_runtime("torch", Source(), threads=1).max_sequence_length == 200
    assert TorchRuntime(tiny_model()).max_sequence_length == 256


def test_bfloat16_and_folding_stay_close() -> None:
    pixels = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    expected = TorchRuntime(tiny_model()).encode_images(pixels)
    folded = load_runtime("torch", Source(), dtype="float32", device="cpu", threads=1, fold=True)
    np.testing.assert_allclose(folded.encode_images(pixels), expected, atol=1e-4)
    rounded = load_runtime("torch", Source(), dtype="bfloat16", device="cpu", threads=1)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in rounded.model.modules())  # folded where results move anyway
    assert rounded.encode_images(pixels).dtype == np.float32
    assert np.abs(rounded.encode_images(pixels) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "unknown dtype 'int3'.*float32"),
        ({"device": "tpu"}, "unknown device 'tpu'.*cuda"),
        ({"device": "cuda:x"}, "unknown device"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_runtime("torch", Source(), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(ValueError, match="no CUDA device"):
        load_runtime("torch", Source(), device="cuda")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_plugin, "is_installed", lambda package: False)
    with pytest.raises(RuntimeUnavailableError, match=r'pip install "fastvlm\[torch\]"'):
        load_runtime("torch", Source())


def test_the_runtime_is_chosen_by_name_and_device() -> None:
    assert choose_runtime("torch", "cpu") == "torch"
    assert choose_runtime("auto", "cuda") == "torch"
    with pytest.raises(ValueError, match=r"unknown runtime 'torhc'; available: .*torch"):
        choose_runtime("torhc")


def test_threads_respect_cores_and_the_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert default_threads(tmp_path) == 8
    for cpu in range(8):  # four cores of two hyperthreads
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert default_threads(tmp_path) == 4
    (tmp_path / "proc/self").mkdir(parents=True)

    group = tmp_path / "sys/fs/cgroup/kubepods/pod1"
    group.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/kubepods/pod1\n")
    (group / "cpu.max").write_text("max 100000\n")
    assert default_threads(tmp_path) == 4
    (group.parent / "cpu.max").write_text("150000 100000\n")  # the parent's limit holds for the child; 1.5 CPUs keep two threads busy
    assert default_threads(tmp_path) == 2

    old = tmp_path / "sys/fs/cgroup/cpu,cpuacct/docker"
    old.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:memory:/docker\n2:cpu,cpuacct:/docker\n")
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    assert default_threads(tmp_path) == 4
    (old / "cpu.cfs_quota_us").write_text("50000\n")
    assert default_threads(tmp_path) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads(tmp_path) == 3


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"rank_pattern": {"mlp.down_proj": 2}, "alpha_pattern": {"q_proj": 32}}])
def test_a_merged_adapter_is_pefts(tmp_path: Path, options: dict) -> None:
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "down_proj", "multi_modal_projector.linear_1"]
    wrapped = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, **options))
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:  # peft starts it at 0, where a merge does nothing
            nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path)
    expected = wrapped.merge_and_unload().state_dict()
    model = tiny_model()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, expected[name])}
    assert len(changed) == 2 * 2 + 1
    merge_adapter(model, tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def test_adapters_that_cannot_be_merged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        merge_adapter(tiny_model(), tmp_path)
    peft = pytest.importorskip("peft")
    for number, (options, message) in enumerate(
        [({"use_dora": True}, "use_dora"), ({"modules_to_save": ["lm_head"]}, "replaces whole modules")],
    ):
        folder = tmp_path / str(number)
        peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"], **options)).save_pretrained(folder)
        with pytest.raises(AdapterError, match=message):
            merge_adapter(tiny_model(), folder)
    folder = tmp_path / "other"
    peft.get_peft_model(tiny_model(GPT_NEOX), peft.LoraConfig(target_modules=["query_key_value"])).save_pretrained(folder)
    with pytest.raises(AdapterError, match="does not have"):
        merge_adapter(tiny_model(), folder)
    peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "wide")
    with pytest.raises(AdapterError, match="the weight is"):
        merge_adapter(tiny_model({**QWEN2, "hidden_size": 48}), tmp_path / "wide")


def test_a_cache_of_several_rows_takes_no_more_prompts() -> None:
    runtime = TorchRuntime(tiny_model())
    _, cache = runtime.prefill([np.array([1, 2]), np.array([3])], [None, None])
    with pytest.raises(ValueError, match="cache of 2 rows"):
        runtime.prefill([np.array([1])], [None], cache)
    with pytest.raises(ValueError, match="at least one id"):
        runtime.prefill([np.array([], np.int64)], [None])
