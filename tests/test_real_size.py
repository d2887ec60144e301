"""Models of real sizes: the released 0.5B's, with random weights, against transformers, and the embedded one in every runtime."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastvlm
from fastvlm.checkpoint import open_checkpoint, save_pretrained
from fastvlm.convert import convert
from fastvlm.data.documents import default_kinds, generate

PARITY = Path(__file__).parent / "data/parity"
SIZES = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
SEED = 23


def write_half_billion(folder: Path) -> None:
    """A checkpoint in Apple's layout with facts of the released 0.5B (config.json of apple/FastVLM-0.5B), untied."""
    spec = importlib.util.spec_from_file_location("make_checkpoint", PARITY / "make_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    case = json.loads((PARITY / "small_tied" / "case.json").read_text())
    case.update(seed=SEED, lm_head_equals_embedding=False)
    case["files"]["config.json"].update(SIZES, tie_word_embeddings=False)
    wide = {128: 896, 320: 4864, 64: 128}  # the small case's widths -> the real ones
    tensors = {}
    for name, shape in case["tensors"].items():
        if "vision_tower" in name:
            tensors[name] = shape
        elif "mm_projector" in name:
            tensors[name] = [wide.get(size, size) for size in shape]
        elif ".layers." in name:
            if ".layers.0." in name:
                for layer in range(24):
                    tensors[name.replace(".0.", f".{layer}.", 1)] = [wide[size] for size in shape]
        else:
            tensors[name] = [wide.get(size, size) for size in shape]
    tensors["lm_head.weight"] = [151936, 896]
    case["tensors"] = tensors
    folder.mkdir()
    for name, content in case["files"].items():
        (folder / name).write_text(json.dumps(content))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).symlink_to(PARITY.parent / "qwen2_tokenizer" / name)
    maker.save_file(dict(maker.tensors(case)), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
def test_half_a_billion_parameters_match_transformers(tmp_path, monkeypatch):
    """Logits and greedy tokens at 512 pixels, float32: 758,798,048 parameters, of which the CLIP head is dropped."""
    transformers = pytest.importorskip("transformers")
    write_half_billion(tmp_path / "apple")
    checkpoint = open_checkpoint(tmp_path / "apple")
    assert checkpoint.describe()["parameters"]["total"] == 758_798_048 - 3072 * 768
    vlm = fastvlm.load(tmp_path / "apple", runtime="torch", dtype="float32", resolution=512)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is the total? 中文"}]
    messages = [{"role": "user", "content": content}]
    inputs = vlm.processor(messages)
    actual = vlm.logits(inputs)
    tokens = vlm.generate(messages, max_new_tokens=12).token_ids
    del vlm
    save_pretrained(checkpoint, checkpoint.processor(), tmp_path / "native", dtype="float32")
    reference = transformers.FastVlmForConditionalGeneration.from_pretrained(tmp_path / "native", dtype=torch.float32).eval()
    ids, pixels = torch.from_numpy(inputs.input_ids), torch.from_numpy(inputs.pixel_values)
    with torch.inference_mode():
        expected = reference(input_ids=ids, pixel_values=pixels).logits.numpy()
        generated = reference.generate(
            input_ids=ids, pixel_values=pixels, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids)
        )
    assert np.abs(actual - expected).max() < 1e-3 * np.abs(expected).max()
    known = expected[0, -1, :151646]
    assert actual[0, -1, :151646].argmax() == known.argmax()
    # transformers does not mask the rows beyond the tokenizer; the comparison ends where one of them would win
    reference_tokens = generated[0, ids.shape[1] :].tolist()
    common = next((i for i, token in enumerate(reference_tokens) if token >= 151646), len(reference_tokens))
    assert tokens[:common] == reference_tokens[:common]


@pytest.mark.slow
def test_every_runtime_answers_a_hundred_questions_alike(tmp_path):
    """The embedded model in float32 on documents for validation: the same greedy tokens as the torch runtime."""
    documents = [generate(seed, kind=kind, width=512, height=512, split="val") for seed, kind in enumerate(default_kinds())]
    questions = [[qa.question for qa in document.qa if qa.kind != "transcription"][:10] for document in documents]
    assert sum(map(len, questions)) >= 100
    checkpoint = open_checkpoint("nano")
    bundles = {
        name: convert(checkpoint, tmp_path / name, runtime=name, precision="fp32", questions=0) for name in ("openvino", "onnxruntime")
    }

    def user(image, question):
        return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}

    answers = {}
    for name, source in {"torch": "nano", **{name: bundle.folder for name, bundle in bundles.items()}}.items():
        vlm = fastvlm.load(source, runtime=name, dtype="float32")
        answers[name] = [
            vlm.generate([user(document.image, question)], max_new_tokens=48).token_ids
            for document, asked in zip(documents, questions, strict=True)
            for question in asked
        ]
    assert sum(map(len, answers["torch"])) > 1000
    assert answers["openvino"] == answers["torch"]
    assert answers["onnxruntime"] == answers["torch"]
