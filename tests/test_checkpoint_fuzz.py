"""Damaged and hostile checkpoints: each ends in a model or in one line that says what is wrong, quickly and in little memory.

The mutations are seeded, so a case that fails is the same case tomorrow; its number is in the assertion.
"""

import copy as copying
import json
import random
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_files import apple_tensors, copy, make_zip, random_model, tiny_config, write_apple
from fastvlm.checkpoint import open_checkpoint, save_pretrained

SECONDS_PER_CASE = 10.0
# Values that no writer gives a field. The large numbers would fill the memory or take for ever if they were believed.
ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.5, -2.5, 1e308, float("inf"), float("nan"), "", "x", "1024", "a" * 5000,
    [], [1], [None], [[1, 2]], {}, {"a": 1}, ["full_attention"], [10**12] * 5, {"rope_type": "yarn", "factor": 0},
    "mobileclip_l_99999999999999999999", "../../etc/passwd", "\ud800", "llama", "gpt2", "no_such_model",
]  # fmt: skip


@pytest.fixture(scope="module")
def apple(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_apple(tmp_path_factory.mktemp("fuzz") / "apple", apple_tensors(random_model(tiny_config())))


@pytest.fixture(scope="module")
def native(apple: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = open_checkpoint(apple)
    return save_pretrained(checkpoint, checkpoint.processor(), tmp_path_factory.mktemp("fuzz") / "native")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVLM_CACHE", str(tmp_path / "cache"))


def peak_memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def use(path: Path) -> None:
    """Everything that a user does with a checkpoint before the first answer, and a forward pass."""
    checkpoint = open_checkpoint(path)
    json.dumps(checkpoint.describe(), default=str)
    processor = checkpoint.processor()
    processor.tokenizer.decode(processor.tokenizer.encode("the thing"))
    model = checkpoint.load_model("float32")
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))


def outcome(path: Path, case: object) -> bool:
    """Whether `path` loads; fails the test unless it loads or says in one line why not."""
    start, memory = time.monotonic(), peak_memory_bytes()
    try:
        use(path)
        return True
    except (ValueError, OSError) as error:
        message = str(error)
        assert message and "\n" not in message, (case, message)
        assert len(message) < 3000, (case, message[:200])
        return False
    finally:
        assert time.monotonic() - start < SECONDS_PER_CASE, case
        assert peak_memory_bytes() - memory < 500_000_000, case


Campaign = Callable[[int, Callable[[random.Random], Path]], tuple[int, int]]


@pytest.fixture(params=[0, *(pytest.param(index, marks=pytest.mark.slow) for index in range(1, 8))], ids="round-{}".format)
def campaign(request: pytest.FixtureRequest) -> Campaign:
    """Use `count` mutants; returns how many loaded, and how many were refused. Rounds differ in their seeds."""

    def run(count: int, mutate: Callable[[random.Random], Path]) -> tuple[int, int]:
        seeds = [f"{request.param}-{case}" for case in range(count)]
        loaded = sum(outcome(mutate(random.Random(seed)), seed) for seed in seeds)
        return loaded, count - loaded

    return run


def mutate_bytes(data: bytes, rng: random.Random, within: int | None = None) -> bytes:
    """Flip bits, overwrite, insert, delete or cut, within the first bytes."""
    changed, limit = bytearray(data), within or len(data)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(min(limit, len(changed)) or 1)
        action = rng.randrange(6)
        if action <= 1:
            changed[position] ^= 1 << rng.randrange(8)
        elif action == 2:
            changed[position] = rng.randrange(256)
        elif action == 3:
            changed[position:position] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 9)))
        elif action == 4:
            del changed[position : position + rng.randint(1, 9)]
        elif rng.random() < 0.3:
            del changed[position:]
        if not changed:
            break
    return bytes(changed)


def mutate_json(values: Any, rng: random.Random) -> Any:
    """One value somewhere in the document replaced by an odd one, removed, or added beside the others."""
    values = copying.deepcopy(values)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any, depth: int) -> None:
        items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        for key, child in rng.sample(items, min(len(items), 60)):  # a vocabulary is long
            places.append((node, key))
            if depth < 5:
                walk(child, depth + 1)

    walk(values, 0)
    for _ in range(rng.randint(1, 2)):
        node, key = rng.choice(places)
        action = rng.randrange(5)
        if action == 0 and isinstance(node, dict):
            node.pop(key, None)
        elif action == 1 and isinstance(node, dict):
            node[rng.choice(["quantization", "rope_scaling", "layer_types", "head_dim", "attention_bias", "new_field"])] = rng.choice(
                ODD_VALUES
            )
        elif isinstance(node, dict) or key < len(node):
            node[key] = rng.choice(ODD_VALUES)
    return values


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def split_safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.mark.parametrize("layout", ["apple", "native"])
def test_bytes_of_the_safetensors_header(layout: str, request: pytest.FixtureRequest, tmp_path: Path, campaign: Campaign) -> None:
    folder = copy(request.getfixturevalue(layout), tmp_path / layout)
    original = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", original[:8])

    def mutate(rng: random.Random) -> Path:
        # a third in the 8 bytes of the length, the rest anywhere in the header
        (folder / "model.safetensors").write_bytes(mutate_bytes(original, rng, 8 if rng.random() < 0.3 else 8 + length))
        return folder

    _, refused = campaign(75, mutate)
    assert refused > 60


@pytest.mark.parametrize("layout", ["apple", "native"])
def test_values_in_the_safetensors_header(layout: str, request: pytest.FixtureRequest, tmp_path: Path, campaign: Campaign) -> None:
    folder = copy(request.getfixturevalue(layout), tmp_path / layout)
    header, data = split_safetensors(folder / "model.safetensors")

    def mutate(rng: random.Random) -> Path:
        changed = mutate_json(header, rng)
        if rng.random() < 0.5:  # of a real entry: dtype, shape and place, also consistent with each other
            name = rng.choice(list(header))
            entry = changed[name] = copying.deepcopy(header[name])
            field, value = rng.choice(
                [
                    ("dtype", "F64"), ("dtype", "I8"), ("dtype", "F8_E4M3"), ("dtype", "BF16"), ("dtype", "X"), ("shape", [2**60]),
                    ("shape", [2**62, 2**62]), ("shape", [-1, -4]), ("shape", [1] * 100), ("shape", []), ("data_offsets", [0, 2**60]),
                    ("data_offsets", [2**60, 2**60 + 4]), ("data_offsets", [4, 0]), ("data_offsets", [0]), ("data_offsets", [0.0, 4.0]),
                ]
            )  # fmt: skip
            if isinstance(entry, dict) and "shape" in entry:
                entry[field] = value
        encoded = json.dumps(changed).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
        return folder

    _, refused = campaign(75, mutate)
    assert refused > 60


@pytest.mark.parametrize("layout", ["apple", "native"])
def test_values_in_config_json(layout: str, request: pytest.FixtureRequest, tmp_path: Path, campaign: Campaign) -> None:
    folder = copy(request.getfixturevalue(layout), tmp_path / layout)
    values = json.loads((folder / "config.json").read_text())

    def mutate(rng: random.Random) -> Path:
        write_json(folder / "config.json", mutate_json(values, rng))
        return folder

    loaded, refused = campaign(80, mutate)
    assert loaded > 0 and refused > 25


@pytest.mark.parametrize("layout, field", [("apple", None), ("native", "text_config"), ("native", None)])
def test_every_field_of_config_json_with_the_values_that_cost_most(
    layout: str, field: str | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = copy(request.getfixturevalue(layout), tmp_path / layout)
    values = json.loads((folder / "config.json").read_text())
    for name in values if field is None else values[field]:
        for odd in (10**12, [10**12] * 5):
            changed = copying.deepcopy(values)
            (changed if field is None else changed[field])[name] = odd
            write_json(folder / "config.json", changed)
            outcome(folder, (name, odd))


@pytest.mark.parametrize(
    "layout, name",
    [
        ("apple", "vocab.json"), ("apple", "added_tokens.json"), ("apple", "tokenizer_config.json"), ("apple", "merges.txt"),
        ("native", "tokenizer.json"), ("native", "tokenizer_config.json"), ("native", "preprocessor_config.json"),
        ("native", "processor_config.json"), ("native", "generation_config.json"),
    ],
)  # fmt: skip
def test_small_files(layout: str, name: str, request: pytest.FixtureRequest, tmp_path: Path, campaign: Campaign) -> None:
    folder = copy(request.getfixturevalue(layout), tmp_path / layout)
    original = (folder / name).read_bytes()

    def mutate(rng: random.Random) -> Path:
        if name.endswith(".json") and rng.random() < 0.6:
            write_json(folder / name, mutate_json(json.loads(original), rng))
        else:
            (folder / name).write_bytes(mutate_bytes(original, rng))
        return folder

    campaign(25, mutate)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"null", b"\xff\xfe\x00", b"1" * 10_000, b'"x"', b"{}", b""])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "vocab.json", "preprocessor_config.json", "model.safetensors.index.json"]
)
def test_json_that_is_no_object_or_too_deep(apple: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = copy(apple, tmp_path / "apple")
    (folder / name).write_bytes(content)
    outcome(folder, name)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_bytes_of_a_zip(apple: Path, tmp_path: Path, compression: int, campaign: Campaign) -> None:
    archive = make_zip(apple, tmp_path / "original.zip", compression)
    original = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        directory = file.start_dir

    def mutate(rng: random.Random) -> Path:
        target = tmp_path / "mutant.zip"
        if rng.random() < 0.5:
            data = original[:directory] + mutate_bytes(original[directory:], rng)
        else:
            data = mutate_bytes(original, rng)
        target.write_bytes(data)
        return target

    _, refused = campaign(60, mutate)
    assert refused > 20


def test_zip_that_claims_more_than_there_is(apple: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb: a small member that unpacks to gigabytes is cut off at the size that the directory states, or refused for the disk."""
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in apple.iterdir():
            if path.name != "vocab.json":
                file.write(path, f"bomb/{path.name}")
        with file.open("bomb/vocab.json", "w") as member:
            for _ in range(100):
                member.write(b" " * 1_000_000)
    assert not outcome(archive, "a JSON file of 100 MB")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
    assert not outcome(make_zip(apple, tmp_path / "model.zip", zipfile.ZIP_DEFLATED), "no room to unpack")


@pytest.mark.parametrize("name", ["../evil.json", "/tmp/fastvlm-evil.json", "llava/../../evil.json", "apple/sub/evil.json"])
def test_zip_members_cannot_leave_their_folder(apple: Path, tmp_path: Path, name: str) -> None:
    archive = make_zip(apple, tmp_path / "evil.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "{}")
    checkpoint = open_checkpoint(archive)
    folder = checkpoint.source.folder()
    assert "evil.json" not in {path.name for path in folder.iterdir()}
    assert not (folder.parent / "evil.json").exists() and not Path("/tmp/fastvlm-evil.json").exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_index_cannot_name_files_elsewhere(apple: Path, tmp_path: Path, name: str) -> None:
    folder = copy(apple, tmp_path / "apple")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    header, _ = split_safetensors(tmp_path / "model.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": dict.fromkeys(header, name)})
    assert not outcome(folder, name)
