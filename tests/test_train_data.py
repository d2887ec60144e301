"""LLaVA files and mixtures: markers keep their place, broken samples are named and never replaced."""

import hashlib
import io
import json
import logging
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastvlm.records import CAPTION_PROMPTS, BrokenSample, record_messages
from fastvlm.train.data import BatchSource, TooManyBroken
from fastvlm.train.recipe import RecipeError
from fastvlm.train.sources import stable_hash


@pytest.fixture
def images(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def entry(*values, image="a.png"):
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "x", "conversations": turns, **({"image": image} if image else {})}


def test_the_picture_stays_where_it_stood(images):
    before = record_messages(entry("<image>\nWhat?", "A cat."), images=images)
    after = record_messages(entry("What?\n<image>", "A cat."), images=images)
    assert [part["type"] for part in before[0]["content"]] == ["image", "text"]
    assert [part["type"] for part in after[0]["content"]] == ["text", "image"]
    assert before[0]["content"][1]["text"] == after[0]["content"][0]["text"] == "What?"
    assert before[1] == {"role": "assistant", "content": "A cat."}


def test_several_pictures_and_none(images):
    two = record_messages(entry("<image> and <image>?", "Same.", image=["a.png", "b.png"]), images=images)
    assert [part.get("text", "image") for part in two[0]["content"]] == ["image", " and ", "image", "?"]
    assert two[0]["content"][2]["image"].endswith("b.png")
    assert record_messages(entry("Hi", "Ho", image=None), images=images)[0]["content"] == [{"type": "text", "text": "Hi"}]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (entry("<image><image>", "x"), "more <image> marks than pictures"),
        (entry("no mark", "x"), "fewer <image> marks than pictures"),
        (entry("<image>", "x", image="gone.png"), "no picture gone.png"),
        (entry("<image> what"), "last turn is not the assistant's"),
        ({"id": 1}, "none of conversations, "),
        ({"conversations": []}, "no `conversations`"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "needs `from`"),
    ],
)
def test_broken_samples_are_named(images, broken, message):
    with pytest.raises(BrokenSample, match=message):
        record_messages(broken, images=images)


def test_a_broken_sample_is_left_out_and_logged(images, caplog):
    path = images / "data.json"
    path.write_text(json.dumps([entry("<image> ?", "yes"), entry("<image>", "x", image="gone.png")]))
    source = BatchSource([{"llava": str(path)}], batch_size=2, seed="s")
    with caplog.at_level(logging.WARNING):
        batch = source.batch(0)
    assert len(batch) == 1
    assert "data.json[1]: no picture gone.png" in caplog.text
    with pytest.raises(TooManyBroken, match="samples are broken"):
        for index in range(40):
            source.batch(index)


def test_batches_depend_on_their_number_alone(images):
    path = images / "data.jsonl"
    path.write_text("\n".join(json.dumps(entry(f"<image> {i}?", str(i))) for i in range(50)))
    mixture = [{"llava": str(path), "weight": 3}, {"llava": str(path)}]
    first, second = (BatchSource(mixture, batch_size=4, seed="s") for _ in range(2))
    batches = [first.batch(index) for index in range(5)]
    assert second.batch(3) == batches[3]
    assert batches[0] != batches[1]


def test_data_that_cannot_be_opened_is_refused(images):
    (images / "bad.json").write_text("[{")
    with pytest.raises(RecipeError, match="bad.json: not JSON"):
        BatchSource([{"llava": str(images / "bad.json")}], batch_size=1, seed="s")
    with pytest.raises(RecipeError, match="names none of"):
        BatchSource([{"web": "x"}], batch_size=1, seed="s")


def asked(batches) -> list[str]:
    """What the users of all samples say."""
    return ["".join(part.get("text", "") for part in messages[0]["content"]) for batch in batches for messages in batch]


def test_an_epoch_sees_every_sample_once(images):
    """Also where a mixture takes turns between sources, and in another order in the second epoch."""
    first, second = images / "first.jsonl", images / "second.json"
    first.write_text("\n\n".join(json.dumps(entry(f"<image> {i}?", str(i))) for i in range(12)))
    second.write_text(json.dumps([entry(f"<image> {i}!", str(i)) for i in range(12)], indent=1))
    source = BatchSource([{"llava": str(first)}, {"llava": str(second)}], batch_size=4, seed="s")
    batches = [source.batch(index) for index in range(40)]
    for mark in "?!":
        seen = [text for text in asked(batches) if text.endswith(mark)]
        assert len(seen) >= 24
        assert sorted(seen[:12]) == sorted(seen[12:24]) == sorted(f" {i}{mark}" for i in range(12))
        assert seen[:12] != seen[12:24]


def test_the_parts_of_a_batch_make_it_up(images):
    """What the processes of a run take of a batch is, together, the batch."""
    path = images / "data.jsonl"
    path.write_text("\n".join(json.dumps(entry(f"<image> {i}?", str(i))) for i in range(50)))
    source = BatchSource([{"llava": str(path)}], batch_size=6, seed="s")
    assert source.batch(2, slice(0, 4)) + source.batch(2, slice(4, 6)) == source.batch(2)


def test_json_is_cut_into_entries_as_json_reads_it(tmp_path):
    """Brackets, quotes and escapes within texts, nested values, no white space and much of it."""
    from fastvlm.records import entry_spans

    entries = [{"a": '}]"\\', "b": [[{"c": '\\"'}]]}, {}, {"d": "\u4e2d [{", "e": None}, {"f": {"g": [1, 2]}}]
    for text in (json.dumps(entries), json.dumps(entries, indent=3), json.dumps(entries, separators=(",", ":"), ensure_ascii=False)):
        path = tmp_path / "x.json"
        path.write_text(text, encoding="utf-8")
        data = path.read_bytes()
        assert [json.loads(data[start:end]) for start, end in entry_spans(path)] == entries


def picture_bytes(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def colour_of(content) -> tuple[int, int, int]:
    return Image.open(io.BytesIO(content[0]["image"])).getpixel((0, 0))


COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def check_captions(mixture):
    """Each caption stands with its own picture."""
    batch = BatchSource(mixture, batch_size=3, seed="s").batch(0)
    assert sorted(messages[-1]["content"] for messages in batch) == sorted(COLOURS)
    for messages in batch:
        assert colour_of(messages[0]["content"]) == COLOURS[messages[-1]["content"]]


def test_parquet_with_pictures_as_bytes(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"picture": {"bytes": picture_bytes(name), "path": None}, "shown": name} for name in COLOURS]
    parquet.write_table(pyarrow.Table.from_pylist(rows[:2]), tmp_path / "a.parquet", row_group_size=1)
    parquet.write_table(pyarrow.Table.from_pylist(rows[2:]), tmp_path / "b.parquet")
    check_captions([{"parquet": str(tmp_path / "*.parquet"), "columns": {"image": "picture", "caption": "shown"}}])


def test_data_sets_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.new("RGB", (4, 4), name) for name in COLOURS], "caption": list(COLOURS)}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")}))
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    check_captions([{"dataset": str(tmp_path / "one")}])
    check_captions([{"dataset": str(tmp_path / "splits"), "split": "train"}])


def test_webdataset_shards(tmp_path):
    """A caption in .txt and a record in .json."""
    with tarfile.open(tmp_path / "00.tar", "w") as tar:
        for index, name in enumerate(COLOURS):
            text = ("json", json.dumps({"caption": name})) if index else ("txt", name)
            for ending, data in (("png", picture_bytes(name)), (text[0], text[1].encode())):
                member = tarfile.TarInfo(f"part/{index:03}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    check_captions([{"webdataset": str(tmp_path / "*.tar")}])


def test_other_records_become_conversations():
    picture = picture_bytes("red")
    chat = {"images": [picture], "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red."}]}
    pairs = {"image": picture, "texts": [{"user": "What?", "assistant": "Red."}, {"user": "Sure?", "assistant": "Yes."}]}
    question = {"image": picture, "question": "What?", "answers": ["Red.", "red"]}
    for record in (chat, pairs, question):
        messages = record_messages(record)
        assert messages[0] == {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}
        assert messages[1] == {"role": "assistant", "content": "Red."}
    assert [message["role"] for message in record_messages(pairs)] == ["user", "assistant"] * 2


def test_captions_are_asked_for_in_many_ways():
    """Paper, stage 1.5: about 300 questions, the picture before or after with even odds; the plain template asks nothing."""
    assert len(set(CAPTION_PROMPTS)) == 300
    record = {"image": b"x", "caption": "A cat."}
    assert record_messages(record)[0]["content"] == [{"type": "image", "image": b"x"}]
    contents = [record_messages(record, rng=random.Random(i))[0]["content"] for i in range(400)]
    assert 150 < sum(content[0]["type"] == "image" for content in contents) < 250
    assert len({part["text"] for content in contents for part in content if part["type"] == "text"}) > 150


def test_pictures_that_cannot_be_read_are_broken_samples(images):
    """Found out in `prepare`, where the picture is opened; named in the log file with the sample."""
    (images / "cut.png").write_bytes(picture_bytes("red")[:40])
    path = images / "data.jsonl"
    path.write_text("\n".join(json.dumps(entry("<image> ?", "x", image=name)) for name in ("a.png", "cut.png")) + "\n{not json\n")
    from fastvlm.image_io import load_image

    source = BatchSource([{"llava": str(path)}], batch_size=3, seed="s", log=images / "broken.txt")
    kept = source.batch(0, prepare=lambda messages: load_image(messages[0]["content"][0]["image"]).size)
    assert kept == [(4, 4)]
    lines = sorted((images / "broken.txt").read_text().splitlines())
    assert len(lines) == 2
    assert lines[0].startswith("data.jsonl[1]: ") and "picture" in lines[0]
    assert lines[1].startswith("data.jsonl[2]: not JSON")


def test_generated_documents_without_room_are_broken_samples(tmp_path):
    drawn = {"generator": "documents", "kinds": {"invoice": 1}, "sizes": [[256, 256]], "options": {"x_height_px": [6.5, 7]}}
    kept = BatchSource([drawn], batch_size=12, seed="s", log=tmp_path / "broken.txt").batch(0)
    lines = (tmp_path / "broken.txt").read_text().splitlines()
    assert 0 < len(kept) == 12 - len(lines) < 12
    assert all(line.startswith("invoice ") and "does not fit into 256x256" in line for line in lines)


def test_generated_documents_are_enlarged():
    """Ink and boxes together: what is dark in the small picture's box of each character is dark in the large one's."""
    drawn = {"generator": "documents", "kinds": {"lines": 1}, "sizes": [[128, 192]], "options": {"degradation": 0}}
    small, large = (BatchSource([{**drawn, "scale": scale}], batch_size=1, seed="s").batch(0)[0] for scale in (1, 2.5))
    assert small.text == large.text and large.image.size == (320, 480)
    assert [line.x_height_px for line in large.lines] == [2.5 * line.x_height_px for line in small.lines]
    for before, after in zip(small.boxes, large.boxes, strict=True):
        means = [np.mean(np.asarray(d.image.crop(tuple(box)), float)) for d, box in ((small, before), (large, after))]
        assert after == pytest.approx(before * 2.5) and means[1] == pytest.approx(means[0], abs=20)


def test_unknown_fields_of_a_source_are_refused(images):
    with pytest.raises(RecipeError, match="unknown field 'image_folder'; known: columns, images, llava"):
        BatchSource([{"llava": "x.json", "image_folder": "y"}], batch_size=1, seed="s")


def test_hashes_do_not_change():
    """Of which batches are made: a run that goes on must draw the same ones."""
    assert stable_hash("s/0") == int.from_bytes(hashlib.sha256(b"s/0").digest()[:8], "little")
