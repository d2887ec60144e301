"""Captions say what a picture shows: cases by hand, and colours and kinds against the drawn pictures."""

import numpy as np
import pytest

from fastvlm.data import captions, documents
from fastvlm.evaluate.tasks import documents as task
from fastvlm.train.data import BatchSource
from fastvlm.train.recipe import RecipeError

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "caption"),
    [
        (("receipt", "till", WHITE, BLACK, 18, ["clean"]), "A receipt, dark text on white, about 20 lines."),
        (
            ("id_card", "office", (200, 215, 240), BLACK, 6, ["camera", "texture", "noise", "fold"]),
            "An identity card photographed on a table, dark text on light blue, about 5 lines, with a fold.",
        ),
        (("chart", "lying-axis", (10, 10, 20), WHITE, 9, ["jpeg"]), "A bar chart with lying bars, light text on black, about 10 lines."),
        (("chart", "two-lines", WHITE, BLACK, 3, ["rotation"]), "A line chart scanned at a slant, dark text on white, only a few words."),
        (("new_kind", "", (50, 130, 70), WHITE, 52, ["clean"]), "A new kind, light text on green, about 50 lines."),
    ],
)
def test_captions_by_hand(arguments, caption):
    assert captions.describe(*arguments) == caption


def test_captions_fit_their_pictures():
    """What is said to be dark on light is light for the most part, and the other way round; every kind has a name of its own."""
    nouns = set()
    for kind in documents.kinds():
        for seed in range(3):
            document = documents.generate(seed, kind=kind, width=384, height=384, x_height_px=(5, 7), degradation=0)
            boxes = document.boxes.round().astype(int)
            x0, y0, x1, y1 = boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()
            gray = np.asarray(document.image.convert("L"))[y0:y1, x0:x1]
            assert ("dark text" in document.caption) == (np.median(gray) > gray.mean()), (kind, seed, document.caption)
        nouns.add(document.caption.partition(",")[0])
    assert len(nouns) == len(documents.kinds())


def test_a_generator_may_give_captions():
    entry = {"generator": "documents", "kinds": {"sign": 1}, "sizes": [[256, 256]]}
    plain = BatchSource([{**entry, "captions": True}], batch_size=2, seed="s").batch(0)
    asked = BatchSource([{**entry, "captions": True, "prompts": "captions"}], batch_size=2, seed="s").batch(0)
    for document, without, with_prompt in zip(BatchSource([entry], batch_size=2, seed="s").batch(0), plain, asked, strict=True):
        assert without[-1] == with_prompt[-1] == {"role": "assistant", "content": document.caption}
        assert [part["type"] for part in without[0]["content"]] == ["image"]
        assert sorted(part["type"] for part in with_prompt[0]["content"]) == ["image", "text"]
    with pytest.raises(RecipeError, match="set captions to true"):
        BatchSource([{**entry, "prompts": "captions"}], batch_size=1, seed="s")


def test_the_documents_task_asks_for_captions():
    options = {"documents": 1, "kinds": "sign,letter", "questions": 0, "transcriptions": 0, "captions": 1}
    asked = list(task.examples("val", options))
    assert [example.answers[0].split()[1].rstrip(",") for example in asked] == ["sign", "letter"]
    assert all(example.groups["question"] == "caption" and example.metric == "anls" for example in asked)
