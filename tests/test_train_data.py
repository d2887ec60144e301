"""LLaVA files and mixtures: markers keep their place, broken samples are named and never replaced."""

import json
import logging

import pytest
from PIL import Image

from fastvlm.train.data import BatchSource, BrokenSample, llava_messages
from fastvlm.train.recipe import RecipeError


@pytest.fixture
def images(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def entry(*values, image="a.png"):
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "x", "conversations": turns, **({"image": image} if image else {})}


def test_the_picture_stays_where_it_stood(images):
    before = llava_messages(entry("<image>\nWhat?", "A cat."), images, "e")
    after = llava_messages(entry("What?\n<image>", "A cat."), images, "e")
    assert [part["type"] for part in before[0]["content"]] == ["image", "text"]
    assert [part["type"] for part in after[0]["content"]] == ["text", "image"]
    assert before[0]["content"][1]["text"] == after[0]["content"][0]["text"] == "What?"
    assert before[1] == {"role": "assistant", "content": "A cat."}


def test_several_pictures_and_none(images):
    two = llava_messages(entry("<image> and <image>?", "Same.", image=["a.png", "b.png"]), images, "e")
    assert [part.get("text", "image") for part in two[0]["content"]] == ["image", " and ", "image", "?"]
    assert two[0]["content"][2]["image"].endswith("b.png")
    assert llava_messages(entry("Hi", "Ho", image=None), images, "e")[0]["content"] == [{"type": "text", "text": "Hi"}]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (entry("<image><image>", "x"), "more <image> marks than pictures"),
        (entry("no mark", "x"), "fewer <image> marks than pictures"),
        (entry("<image>", "x", image="gone.png"), "no picture gone.png"),
        (entry("<image> what"), "last turn is not the assistant's"),
        ({"id": 1}, "no `conversations`"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "needs `from`"),
    ],
)
def test_broken_samples_are_named(images, broken, message):
    with pytest.raises(BrokenSample, match=f"^here: .*{message}"):
        llava_messages(broken, images, "here")


def test_a_broken_sample_is_left_out_and_logged(images, caplog):
    path = images / "data.json"
    path.write_text(json.dumps([entry("<image> ?", "yes"), entry("<image>", "x", image="gone.png")]))
    source = BatchSource([{"llava": str(path)}], batch_size=2, seed="s")
    with caplog.at_level(logging.WARNING):
        batch = source.batch(0)
    assert len(batch) == 1
    assert "data.json[1]: no picture gone.png" in caplog.text
    with pytest.raises(RuntimeError, match="samples are broken"):
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
        BatchSource([{"webdata": "x"}], batch_size=1, seed="s")
