"""The whole system: the reference's recorded results, every kind of language model through load, answer and save, and the command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import fastvlm
from checkpoint_files import ADDED, TOWER, apple_tensors, random_model, tiny_config, write_apple, write_tokenizer
from fastvlm import cli
from fastvlm.checkpoint import open_checkpoint, save_pretrained
from fastvlm.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm.generate import ContextLengthError
from fastvlm.processor import Processor
from fastvlm.runtimes.torch import TorchRuntime
from fastvlm.tokenizer import Tokenizer

PARITY = Path(__file__).parent / "data/parity"
CASE = PARITY / "small_tied"
PROMPTS = json.loads((CASE / "prompts.json").read_text())
EXPECTED = np.load(CASE / "expected.npz")


def question(text: str, *images: object) -> list[dict]:
    return [{"role": "user", "content": [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]}]


def noise(width: int = 128, height: int = 128, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def parity(parity_checkpoint: Path) -> fastvlm.FastVLM:
    return fastvlm.load(parity_checkpoint, runtime="torch", dtype="float32", device="cpu")


def close(ours: np.ndarray, reference: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(ours - reference).max() <= tolerance * np.abs(reference).max())


@pytest.mark.parametrize("image", ["landscape.png", "portrait.jpg", "alpha.png"])
def test_features_are_the_references(parity: fastvlm.FastVLM, image: str) -> None:
    inputs = parity.processor(question("", str(CASE / image)))
    assert inputs.pixel_values is not None
    assert inputs.pixel_values.shape == (1, 3, 1024, 1024)
    np.testing.assert_allclose(inputs.pixel_values[0, :, ::64, ::64], EXPECTED[f"{image}/pixel_values_rows"], atol=1e-6)
    features = []  # of the tower, taken as it encodes: a second pass would take seconds
    hook = parity.runtime.model.vision_tower.register_forward_hook(lambda *call: features.append(call[-1]))  # type: ignore[attr-defined]
    ((_, projected),) = parity.engine.image_features([inputs])[0]  # stays in the cache for the tests below
    hook.remove()
    assert features[0].shape == (1, 256, 3072)
    assert close(features[0][0, ::8].numpy(), EXPECTED[f"{image}/image_features"], 1e-4)
    assert close(projected[::8], EXPECTED[f"{image}/projected"], 1e-4)


@pytest.mark.parametrize("prompt", range(len(PROMPTS)))
@pytest.mark.parametrize("image", ["landscape.png", "portrait.jpg"])
def test_answers_are_the_references(parity: fastvlm.FastVLM, image: str, prompt: int) -> None:
    messages = question(PROMPTS[prompt], str(CASE / image))
    inputs = parity.processor(messages)
    ids = EXPECTED[f"{image}/{prompt}/input_ids"].tolist()
    place = ids.index(-200)
    assert inputs.input_ids.tolist() == [[*ids[:place], *[parity.config.image_token_id] * 256, *ids[place + 1 :]]]
    expected = EXPECTED[f"{image}/{prompt}/last_logits"]
    logits = parity.logits(inputs)
    assert logits.shape == (1, inputs.input_ids.size, parity.config.text_config.vocab_size)
    assert logits.dtype == np.float32
    assert close(logits[0, -1, : len(expected)], expected, 1e-3)
    result = parity.generate(messages, max_new_tokens=24)
    assert result.token_ids == EXPECTED[f"{image}/{prompt}/greedy_ids"].tolist()
    assert result.text == parity.processor.tokenizer.decode(result.token_ids)


def test_the_command_answers_from_apples_files(parity: fastvlm.FastVLM, parity_checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    image = str(CASE / "portrait.jpg")
    flags = f"--model {parity_checkpoint} --image {image} --runtime torch --dtype float32 --max-new-tokens 5 --resolution 256".split()
    assert cli.main(["predict", *flags, "--prompt", PROMPTS[0]]) == 0
    shown = capsys.readouterr().out
    expected = parity.generate(question(PROMPTS[0], image), max_new_tokens=5, resolution=256)
    assert expected.timings.image_tokens == 16
    assert shown == expected.text + "\n"
    assert cli.main(["info", str(parity_checkpoint)]) == 0
    assert "llava_qwen2" in capsys.readouterr().out


# Language models: our four families, and three that transformers runs

QWEN2 = {"model_type": "qwen2"}
FAMILIES = {
    "qwen2": {},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": 40},
    "gpt_neox": {"model_type": "gpt_neox"},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
}


def write_native(folder: Path, text: dict) -> Path:
    """A checkpoint in transformers' layout with random weights, tokenizer included."""
    config = tiny_config(tie=False, text={**text, "eos_token_id": ADDED["<|im_end|>"]})
    source = folder.parent / f"{folder.name}-tokenizer"
    source.mkdir()
    write_tokenizer(source)
    processor = Processor(Tokenizer.from_folder(source))
    processor.image_processor = processor.image_processor.at_size(128)
    assert processor.image_token_id == config.image_token_id
    save_pretrained(random_model(config), processor, folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native(tmp_path_factory.mktemp("native") / request.param, FAMILIES[request.param])


@pytest.fixture(scope="module")
def vlm(checkpoint_folder: Path) -> fastvlm.FastVLM:
    return fastvlm.load(checkpoint_folder, runtime="torch", dtype="float32", device="cpu", threads=1)


MESSAGES = [
    question("Read it.", noise()),
    question("Just text, no picture at all, and quite a bit of it to make the rows differ in length."),
    question("Compare these.", noise(200, 90, 1), noise(60, 120, 2)),
    question("Read it once more, and slowly.", noise()),
]


def test_every_language_model_answers_alike_alone_batched_and_streamed(vlm: fastvlm.FastVLM) -> None:
    single = [vlm.generate(messages, max_new_tokens=12) for messages in MESSAGES]
    batch = vlm.generate_batch(MESSAGES, max_new_tokens=12)
    assert [result.token_ids for result in batch] == [result.token_ids for result in single]
    for messages, result in zip(MESSAGES, single, strict=True):
        assert "".join(vlm.stream(messages, max_new_tokens=12)) == result.text
    assert {result.timings.image_tokens for result in single} == {0, 4, 8}


def test_every_language_model_answers_as_plain_passes_do(vlm: fastvlm.FastVLM) -> None:
    """Cached decoding against the most probable id of a whole pass, token by token."""
    inputs = vlm.processor(MESSAGES[2])
    tokens = vlm.generate(MESSAGES[2], max_new_tokens=6).token_ids
    known = vlm.processor.tokenizer.vocab_size
    for token in tokens:
        logits = vlm.logits(inputs)[0, -1, :known].copy()
        logits[vlm.config.image_token_id] = -np.inf
        assert token == logits.argmax()
        inputs.input_ids = np.append(inputs.input_ids, [[token]], axis=1)


def test_every_language_model_keeps_a_conversation(vlm: fastvlm.FastVLM) -> None:
    plain = fastvlm.FastVLM(vlm.processor, vlm.runtime, feature_cache_bytes=0, prefix_cache_bytes=0)
    messages: list[dict] = []
    for turn in (MESSAGES[2][0], MESSAGES[1][0], MESSAGES[0][0]):
        messages.append(turn)
        result = vlm.generate(messages, max_new_tokens=8)
        assert result.token_ids == plain.generate(messages, max_new_tokens=8).token_ids
        messages.append({"role": "assistant", "content": result.text})
    assert plain.generate(messages[:1], max_new_tokens=2).timings.cached_tokens == 0
    if vlm.config.text_config.model_type != "gemma2":  # whose window of 40 has moved on: transformers cannot trim that
        assert result.timings.cached_tokens > 0


def test_every_language_model_is_saved_whole(vlm: fastvlm.FastVLM, tmp_path: Path) -> None:
    vlm.save(tmp_path / "saved")
    again = fastvlm.load(tmp_path / "saved", runtime="torch", dtype="float32", device="cpu", threads=1)
    expected = vlm.generate(MESSAGES[2], max_new_tokens=8)
    assert again.generate(MESSAGES[2], max_new_tokens=8).token_ids == expected.token_ids
    np.testing.assert_array_equal(again.logits(again.processor(MESSAGES[2])), vlm.logits(vlm.processor(MESSAGES[2])))


def test_a_model_in_memory_is_saved_too(tmp_path: Path) -> None:
    vlm = fastvlm.load(write_native(tmp_path / "one", {}), runtime="torch", dtype="float32", device="cpu", threads=1)
    fastvlm.FastVLM(vlm.processor, TorchRuntime(vlm.runtime.model)).save_pretrained(tmp_path / "two")  # type: ignore[attr-defined]
    again = fastvlm.load(tmp_path / "two", runtime="torch", dtype="float32", device="cpu", threads=1)
    assert again.generate(MESSAGES[0], max_new_tokens=8).token_ids == vlm.generate(MESSAGES[0], max_new_tokens=8).token_ids


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native(tmp_path_factory.mktemp("small") / "small", {})


@pytest.fixture(scope="module")
def small(small_folder: Path) -> fastvlm.FastVLM:
    return fastvlm.load(small_folder, runtime="torch", dtype="float32", device="cpu", threads=1)


def test_the_api_of_the_readme(small: fastvlm.FastVLM, small_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    noise().save(path)
    messages = question("Read it.", path)
    inputs = small.processor(messages)
    assert inputs.input_ids.dtype == np.int64
    assert inputs.pixel_values is not None
    features = small.encode_images(inputs.pixel_values)
    assert features.shape == (1, 4, small.config.text_config.hidden_size)
    tower_features = small.vision_features(inputs.pixel_values)
    assert tower_features.shape == (1, 4, 2 * TOWER["embed_dims"][-1])
    projector = small.runtime.model.multi_modal_projector  # type: ignore[attr-defined]
    np.testing.assert_allclose(projector(torch.from_numpy(tower_features)).detach().numpy(), features, atol=1e-5)
    assert {features.dtype, tower_features.dtype} == {np.dtype(np.float32)}
    assert small.logits(inputs).shape == (1, inputs.input_ids.size, 320)
    result = small.generate(messages, max_new_tokens=4, temperature=0.0)
    assert (result.token_ids, result.finish_reason) == (small.generate(question("Read it.", noise()), max_new_tokens=4).token_ids, "length")
    assert fastvlm.load(str(small_folder), runtime="torch", resolution=256, image_mode="native").processor.image_processor.size == 256


def test_resolution_and_mode_change_what_is_seen(small_folder: Path) -> None:
    vlm = fastvlm.load(small_folder, dtype="float32", device="cpu", runtime="torch", threads=1, resolution=192, image_mode="native")
    wide = vlm.generate(question("Read.", noise(384, 96)), max_new_tokens=2)
    assert wide.timings.image_tokens == 4  # 256 x 64 pixels keep the shape
    assert vlm.generate(question("Read.", noise(96, 96)), max_new_tokens=2).timings.image_tokens == 9
    both = [question("Read.", noise(384, 96), noise(96, 96)), question("Read.", noise(96, 96))]
    single = [vlm.generate(messages, max_new_tokens=4).token_ids for messages in both]
    assert [result.token_ids for result in vlm.generate_batch(both, max_new_tokens=4)] == single
    assert vlm.generate(question("Read.", noise(96, 96)), max_new_tokens=2, resolution=64).timings.image_tokens == 1
    with pytest.raises(ValueError, match="multiple of 64"):
        fastvlm.load(small_folder, runtime="torch", resolution=100)


def test_a_prompt_past_the_context_is_refused_with_the_numbers(small: fastvlm.FastVLM) -> None:
    long = question("word " * 600, noise())
    for call in (small.generate, small.stream, lambda messages: small.logits(small.processor(messages))):
        with pytest.raises(ValueError, match=r"the prompt has \d+ tokens, 4 of them for .* 256\b"):  # the tokenizer's own limit
            call(long)
    small.processor.max_length = None
    try:
        with pytest.raises(ContextLengthError, match=r"the prompt has \d+ tokens, 4 of them for images.* 256,"):
            small.logits(small.processor(long))
    finally:
        small.processor.max_length = 256


def test_pieces_are_whole_characters(tmp_path: Path) -> None:
    """A model made to say one text, of which most characters take several tokens."""
    vlm = fastvlm.load(write_native(tmp_path / "model", {}), runtime="torch", dtype="float32", device="cpu", threads=1)
    text = "Größe: 5 µm – 日本語 👩‍🔬 ✓"
    said = iter([*vlm.processor.tokenizer.encode(text), ADDED["<|im_end|>"]])

    class Saying:
        def __getattr__(self, name: str) -> object:
            return getattr(runtime, name)

        def prefill(self, *arguments: object) -> tuple:
            logits, cache = runtime.prefill(*arguments)
            return self.say(logits), cache

        def decode(self, *arguments: object) -> np.ndarray:
            return self.say(runtime.decode(*arguments))

        def say(self, logits: np.ndarray) -> np.ndarray:
            return np.eye(logits.shape[-1], dtype=np.float32)[[next(said)]]

    runtime = vlm.runtime
    vlm.engine.runtime = Saying()  # type: ignore[assignment]
    stream = vlm.stream(question("Speak."), max_new_tokens=200)
    pieces = list(stream)
    assert "".join(pieces) == text == stream.result.text
    assert len(pieces) > 10
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.result.finish_reason == "stop"


def test_float16_keeps_the_tower_in_float32(small_folder: Path, small: fastvlm.FastVLM) -> None:
    half = fastvlm.load(small_folder, runtime="torch", dtype="float16", device="cpu", threads=1)
    model = half.runtime.model  # type: ignore[attr-defined]
    assert {value.dtype for value in model.vision_tower.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert {value.dtype for value in model.language_model.parameters()} == {torch.float16}
    pixels = small.processor(MESSAGES[0]).pixel_values
    assert pixels is not None
    assert close(half.encode_images(pixels), small.encode_images(pixels), 1e-2)
    assert half.generate(MESSAGES[0], max_new_tokens=3).token_ids


def test_transformers_answers_the_same_from_the_same_folder(small: fastvlm.FastVLM, small_folder: Path) -> None:
    """transformers' own FastVLM and processor, greedy, on a square picture, where all recipes agree."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(small_folder, dtype=torch.float32).eval()
    inputs = small.processor(MESSAGES[0])
    assert inputs.pixel_values is not None
    output = model.generate(
        input_ids=torch.from_numpy(inputs.input_ids),
        attention_mask=torch.ones(inputs.input_ids.shape, dtype=torch.long),
        pixel_values=torch.from_numpy(inputs.pixel_values),
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=[small.config.image_token_id, *range(small.processor.tokenizer.vocab_size, 320)],
    )
    expected = output[0, inputs.input_ids.size :].tolist()
    assert small.generate(MESSAGES[0], max_new_tokens=12).token_ids == expected


def test_an_adapter_changes_the_answer_and_is_saved(small: fastvlm.FastVLM, small_folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(
        open_checkpoint(small_folder).load_model("float32"), peft.LoraConfig(target_modules=["q_proj", "up_proj"])
    )
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(tmp_path / "adapter")
    options = {"runtime": "torch", "dtype": "float32", "device": "cpu", "threads": 1}
    adapted = fastvlm.load(small_folder, adapter=tmp_path / "adapter", **options)
    inputs = small.processor(MESSAGES[0])
    merged = TorchRuntime(wrapped.merge_and_unload())
    assert inputs.pixel_values is not None
    expected = merged.logits(inputs.input_ids, merged.encode_images(inputs.pixel_values))
    np.testing.assert_allclose(adapted.logits(inputs), expected, atol=1e-4)
    assert np.abs(small.logits(inputs) - expected).max() > 0.1
    adapted.save(tmp_path / "merged")
    np.testing.assert_allclose(fastvlm.load(tmp_path / "merged", **options).logits(inputs), expected, atol=1e-4)


def test_what_is_wrong_with_a_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tiny_config()
    folder = write_apple(tmp_path / "apple", apple_tensors(random_model(config)))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    for model in (str(folder), str(tmp_path / "absent")):
        assert cli.main(["predict", "--model", model, "--runtime", "torch", "--prompt", "P"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("fastvlm: error: ")
        assert error.count("\n") == 1
        assert model.rsplit("/", 1)[1] in error


def test_a_differing_head_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model(tiny_config())
    folder = write_apple(tmp_path / "apple", apple_tensors(model, head=torch.ones(320, 32)))
    assert cli.main(["predict", "--model", str(folder), "--runtime", "torch", "--prompt", "P", "--max-new-tokens", "2"]) == 0
    assert "'lm_head.weight' is not used" in caplog.text
    capsys.readouterr()
    assert cli.main(["info", str(folder)]) == 0
    assert "not used" in capsys.readouterr().out


def test_the_command_as_a_process(small_folder: Path, tmp_path: Path) -> None:
    """stdout, stderr and status of the real program; the picture over standard input."""
    path = tmp_path / "picture.png"
    noise().save(path)
    command = [sys.executable, "-m", "fastvlm", "predict", "--model", str(small_folder), "--runtime", "torch", "--dtype", "float32"]
    command += ["--threads", "1", "--prompt", "Read it.", "--max-new-tokens", "6", "--image", "-", "--json", "--stats"]
    environment = {**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"}
    result = subprocess.run(command, input=path.read_bytes(), capture_output=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    vlm = fastvlm.load(small_folder, runtime="torch", dtype="float32", device="cpu", threads=1)
    assert document["token_ids"] == vlm.generate(question("Read it.", path), max_new_tokens=6).token_ids
    assert document["timings"]["image_tokens"] == 4
    assert re.search(rb"first token +\d", result.stderr)


def test_info_prints_json(small_folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["info", str(small_folder), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["layout"] == "fast_vlm"
    assert description["language_model"]["hidden_size"] == 32
    assert cli.main(["info", str(small_folder)]) == 0
    assert re.search(r"hidden size: 32", capsys.readouterr().out)


def test_configs_of_the_families_are_what_they_say() -> None:
    configs = [TextConfig.from_dict({**tiny_config().text_config.raw, **text}) for text in FAMILIES.values()]
    assert [config.foreign for config in configs] == [False] * 4 + [True] * 3
    assert isinstance(tiny_config().vision_config, VisionConfig)
    assert FastVLMConfig.MODEL_TYPE == "fast_vlm"
