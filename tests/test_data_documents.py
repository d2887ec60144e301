"""Documents made by code: repeatable, boxes on the ink, splits apart, answers in the text, data sets that go on after a break."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from fastvlm.data import canvas, degrade, documents, fonts, heldout, questions, words
from fastvlm.data.questions import EXTRACTIVE_KINDS, QUESTION_KINDS
from fastvlm.image_processing import ImageProcessor
from fastvlm.plugins import load_plugin

SIZE = {"width": 512, "height": 512}
SHIPPED_FACES = tuple(face for face in fonts.discover() if face.path.startswith(str(fonts.SHIPPED)))


def squeeze(text: str) -> str:
    return " ".join(text.split())


# ---- one document


def test_the_same_arguments_give_the_same_document_and_another_seed_another():
    first, again, other = (documents.generate(seed, kind="invoice", **SIZE) for seed in (5, 5, 6))
    assert first.image.tobytes() == again.image.tobytes()
    assert documents.truth(first) == documents.truth(again)
    assert other.text != first.text


@pytest.mark.parametrize("kind", documents.kinds())
def test_every_kind_says_what_stands_in_it(kind: str):
    for split in fonts.SPLITS:
        for seed in range(4):
            document = documents.generate(seed, split=split, kind=kind, width=640, height=512)
            assert document.image.size == (640, 512) and document.image.mode == "RGB" and document.kind == kind
            assert "".join(document.text.split()) == document.chars, "characters without blanks are the text in reading order"
            assert document.boxes.shape == (len(document.chars), 4) and document.boxes.dtype == np.float32
            assert (document.boxes[:, 2:] > document.boxes[:, :2]).all()
            assert document.text == "\n".join(line.text for line in document.lines)
            text = squeeze(document.text)
            for key, value in document.fields.items():
                assert squeeze(value) in text, (seed, split, key, value)
            for table in document.tables:
                assert len({len(row) for row in table}) == 1
            assert all(qa.question and qa.answer and qa.kind in QUESTION_KINDS for qa in document.qa)
            for qa in document.qa:
                if qa.kind in EXTRACTIVE_KINDS:
                    assert squeeze(qa.answer) in text, (seed, split, qa)
                elif qa.kind == "yes_no":
                    assert qa.answer in ("Yes", "No")
                elif qa.kind == "count":
                    assert qa.answer.isdigit()
                elif qa.kind == "json":
                    values = json.loads(qa.answer)
                    assert values.items() <= document.fields.items()
            assert [qa.answer for qa in document.qa if qa.kind == "transcription"] == [document.text]


def test_lines_are_read_from_the_top_and_rows_from_the_left():
    page = canvas.Page(400, 200, random.Random(0), x_height_px=(8, 8))
    style = page.style(1.0)
    page.text(300, 40, "12.50", style)
    page.text(10, 100, "below", style)
    page.text(10, 40.5, "Total:", style)
    page.new_block()
    page.text(200, 20, "a block of its own, though it stands higher"[:12], style)
    truth = page.ground_truth()
    assert truth.text == "Total: 12.50\nbelow\na block of i"
    assert truth.chars == "Total:12.50belowablockofi"


def test_text_that_would_leave_the_page_is_refused():
    page = canvas.Page(128, 128, random.Random(0), x_height_px=(8, 8))
    with pytest.raises(canvas.PageFull):
        page.text(100, 50, "much too long", page.style(1.0))
    with pytest.raises(canvas.PageFull):
        page.text(10, 3, "too high", page.style(1.0))


def test_a_letter_that_hinting_leaves_without_ink_is_drawn_in_another_font(monkeypatch: pytest.MonkeyPatch):
    page = canvas.Page(256, 256, random.Random(1), split="train", x_height_px=(6, 12))
    style = page.style(1.0)
    drawn = canvas.Strike.glyph

    def without_hyphen(self: canvas.Strike, character: str, quarters: int = 0) -> tuple:
        return (None, 0, 0, 0, 0) if character == "-" and self is not fallback else drawn(self, character, quarters)

    fallback = canvas.strike(page._fallback, page._raster(style)[0])
    monkeypatch.setattr(canvas.Strike, "glyph", without_hyphen)
    page.text(20, 50, "a - b", style)
    assert page.ground_truth().chars == "a-b"


def test_x_height_is_what_was_asked_for():
    low, high = 7.0, 9.0
    for seed in range(12):
        document = documents.generate(seed, kind="paragraph", x_height_px=(low, high), degradation=0, **SIZE)
        body = Counter(round(line.x_height_px, 2) for line in document.lines).most_common(1)[0][0]
        assert low * 0.95 <= body <= high * 1.05
    # Against the ink itself: the box of an x is as high as the line's x-height says.
    for seed in range(8):
        document = documents.generate(seed, kind="lines", x_height_px=(12, 14), degradation=0, **SIZE)
        start = 0
        for line in document.lines:
            count = len("".join(line.text.split()))
            for i in range(start, start + count):
                if document.chars[i] == "x":
                    assert document.boxes[i, 3] - document.boxes[i, 1] == pytest.approx(line.x_height_px, abs=1.6)
            start += count


# ---- boxes against the ink


def ink_of(document: documents.Document) -> np.ndarray:
    """(height, width) how far each pixel is from the page's commonest colour: ink, whatever is dark and light. The black around a page is none."""
    pixels = np.asarray(document.image).astype(int)
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in ((1, 2), (0, 2)))
    inside = np.s_[rows[0] + 2 * (rows[0] > 0) : rows[-1] - 1, columns[0] + 2 * (columns[0] > 0) : columns[-1] - 1]
    values, counts = np.unique(pixels[inside].reshape(-1, 3), axis=0, return_counts=True)
    ink = np.zeros(pixels.shape[:2], int)
    ink[inside] = np.abs(pixels[inside] - values[counts.argmax()]).max(-1)
    return ink


@pytest.mark.parametrize("kind", ["words", "lines", "paragraph", "letter"])
def test_every_box_holds_ink_and_all_ink_is_in_boxes(kind: str):
    for seed in range(6):
        document = documents.generate(seed, kind=kind, degradation=0, **SIZE)
        if document.degradations != ("clean",) or (
            kind == "letter" and document.layout in ("circular", "business", "notice", "memo", "email", "fax", "footed")
        ):
            continue  # letterheads have logos and rules, which are ink without a box
        ink = ink_of(document)
        covered = np.zeros_like(ink, bool)
        for character, (x0, y0, x1, y1) in zip(document.chars, document.boxes, strict=True):
            inside = ink[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
            assert inside.max() > 40, (seed, character)
            covered[max(0, int(y0) - 1) : int(np.ceil(y1)) + 1, max(0, int(x0) - 2) : int(np.ceil(x1)) + 2] = True
        assert ink[~covered].max() < 60, f"seed {seed}: ink outside every box"


def warped_page(seed: int) -> tuple[Image.Image, degrade.Plan]:
    """A page with single filled marks instead of letters, and a plan that moves it."""
    rng = random.Random(seed)
    plan = degrade.Plan.draw(rng, 400, 300, level=0.0)
    plan.names = ["rotation"]
    plan.background = "paper"
    plan._warp(rng, margin=0.03, tilt=0.03, angle=4)
    return Image.new("RGB", (plan.page_width, plan.page_height), (255, 255, 255)), plan


def test_boxes_move_with_the_picture():
    """Marks are found again in the moved picture by their pixels, independently of the homography."""
    for seed in range(5):
        image, plan = warped_page(seed)
        draw = ImageDraw.Draw(image)
        boxes = np.array([[x, y, x + 9, y + 13] for x in range(30, 370, 60) for y in range(30, 270, 60)], np.float32)
        for x0, y0, x1, y1 in boxes.tolist():
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=(0, 0, 0))
        moved_image, moved = plan.apply(image, boxes)
        dark = 255 - np.asarray(moved_image.convert("L")).astype(float)
        for x0, y0, x1, y1 in moved:
            left, top = int(x0) - 6, int(y0) - 6
            patch = dark[top : int(y1) + 6, left : int(x1) + 6]
            ys, xs = np.mgrid[0 : patch.shape[0], 0 : patch.shape[1]]
            center = (left + (xs * patch).sum() / patch.sum() + 0.5, top + (ys * patch).sum() / patch.sum() + 0.5)
            assert center[0] == pytest.approx((x0 + x1) / 2, abs=0.6)
            assert center[1] == pytest.approx((y0 + y1) / 2, abs=0.6)


def test_a_view_pads_and_resizes_as_the_processor_does_and_boxes_follow():
    for size in ((700, 400), (333, 640), (300, 200)):
        image = Image.new("RGB", size, (250, 250, 240))
        boxes = np.array([[40, 50, 60, 90], [size[0] - 80, size[1] - 100, size[0] - 50, size[1] - 60]], np.float32)
        for x0, y0, x1, y1 in boxes.tolist():
            ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=(200, 0, 0))
        view = degrade.View(512, 512, *size, 512 / max(size))
        seen, moved = view.apply(image, boxes)
        expected = ImageProcessor(512)(image)[0]
        assert np.array_equal(np.asarray(seen).transpose(2, 0, 1), np.round(expected * 255).astype(np.uint8))
        red = np.asarray(seen).astype(int)
        ys, xs = np.nonzero((red[..., 0] > 150) & (red[..., 1] < 100))
        found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert np.abs(found - np.concatenate([moved[:, :2].min(0), moved[:, 2:].max(0)])).max() <= 1
        assert np.allclose(view.size, np.array(size) * 512 / max(size))


def test_pictures_to_learn_from_have_many_shapes_and_others_are_as_they_were():
    def bars(document: documents.Document) -> int:
        pixels = np.asarray(document.image)
        return int((~pixels.any((1, 2))).sum() + (~pixels.any((0, 2))).sum())

    made = [documents.generate(seed, kind="invoice", **SIZE) for seed in range(16)]
    assert 4 <= sum(bars(document) > 20 for document in made) <= 15
    assert not any(bars(documents.generate(seed, split="val", kind="invoice", **SIZE)) for seed in range(4))


def test_boxes_of_degraded_text_lie_where_the_letters_are():
    """The ends of a line of text, found in the degraded picture by its ink alone, are those of its boxes."""
    for seed in range(8):
        _, plan = warped_page(seed)
        plan.names = ["rotation", "blur", "jpeg"]
        page = canvas.Page(plan.page_width, plan.page_height, random.Random(seed), x_height_px=(9, 13))
        page.text(60, 150, f"Nr. {seed}: Hxq TyH", page.style(1.0))
        image, boxes = plan.apply(page.image, page.ground_truth().boxes)
        ink = 255 - np.asarray(image.convert("L")).astype(float)
        ys, xs = np.nonzero(ink > 0.35 * ink.max())
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        wanted = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
        assert np.abs(found - wanted).max() < 2, (seed, found, wanted)


def test_glyph_boxes_agree_with_another_way_of_drawing():
    """Each character's ink, measured alone by Pillow at its own pen position, agrees with the page's box."""
    face = next(face for face in SHIPPED_FACES if face.family == "Arimo" and not face.is_bold)
    page = canvas.Page(600, 100, random.Random(3), x_height_px=(12, 12), families=canvas.Families([face], [face], [face]))
    page.kerns, page.uses_hinted_advances = False, False
    style = page.style(1.0)
    text = "Sphinx of quartz, 1948"
    page.text(20, 60, text, style)
    truth = page.ground_truth()
    font = ImageFont.truetype(face.path, 200, layout_engine=ImageFont.Layout.BASIC)
    scale = style.size_px / 200
    index = 0
    for i, character in enumerate(text):
        if character == " ":
            continue
        pen = 20 + font.getlength(text[:i]) * scale
        alone = Image.new("L", (400, 400))
        ImageDraw.Draw(alone).text((100, 250), character, 255, font, anchor="ls")
        left, top, right, bottom = np.array(alone.getbbox()) - [100, 250, 100, 250]
        wanted = (pen + left * scale, 60 + top * scale, pen + right * scale, 60 + bottom * scale)
        assert np.abs(truth.boxes[index] - wanted).max() < 1.0, (character, truth.boxes[index], wanted)
        index += 1


def test_plain_questions_are_asked_of_known_fields_and_only_in_training():
    assert questions._PLAIN.keys() <= questions.FIELDS.keys()
    asked = questions.ask_plainly(random.Random(1), "receipt", {"total": "$ 4", "made_up": "x"}, {"made_up": "Colour"})
    assert [qa.answer for qa in asked] == ["$ 4", "x"] and not any("{" in qa.question for qa in asked)
    assert "colour" in asked[1].question.lower()


# ---- splits


def test_sentences_of_letters_use_no_word_of_another_split():
    others = set(words.content_words("heldout")) | set(words.content_words("val"))
    for sentence in load_plugin(documents.KINDS_PACKAGE, "letter")._USUAL:
        own = {word for word in re.findall("[a-z]+", re.sub(r"{\w+}", "", sentence).lower()) if len(word) > 2}
        assert not own & others - words.FUNCTION_WORDS, sentence


def test_fonts_layouts_and_words_of_the_splits_are_disjoint():
    families = {split: set(fonts.families(split)) for split in fonts.SPLITS}
    assert (
        not families["train"] & families["heldout"]
        and not families["train"] & families["val"]
        and not families["val"] & families["heldout"]
    )
    for kind in heldout.KINDS + documents.NANO_EXCLUDED_KINDS:
        layouts = load_plugin(documents.KINDS_PACKAGE, kind).LAYOUTS
        every = [name for split in fonts.SPLITS for name in layouts[split]]
        assert len(every) == len(set(every)) and all(layouts[split] for split in fonts.SPLITS), kind
        presets = getattr(load_plugin(documents.KINDS_PACKAGE, kind), "_PRESETS", None)
        if presets:
            looks = Counter(str(sorted(look.items())) for look in presets.values())
            assert set(presets) == set(every)
            for name in layouts["heldout"]:
                assert looks[str(sorted(presets[name].items()))] == 1, f"{kind}: the look {name} is used by another layout"
    lists = {split: set(words.content_words(split)) for split in fonts.SPLITS}
    for name in ("first_names", "last_names", "places", "cities", "trades", "products", "services"):
        for split in fonts.SPLITS:
            known = {word.lower() for entry in words.entries(name, split) for word in entry.split() if len(word) > 2}
            assert known, (name, split)
            lists[split] |= known
    assert not lists["train"] & lists["heldout"] and not lists["train"] & lists["val"] and not lists["val"] & lists["heldout"]


def test_documents_use_the_fonts_and_layouts_of_their_split():
    for split in fonts.SPLITS:
        for kind in ("receipt", "chart"):
            document = documents.generate(1, split=split, kind=kind, **SIZE)
            assert set(document.font_families) <= set(fonts.families(split))
            assert document.layout in load_plugin(documents.KINDS_PACKAGE, kind).LAYOUTS[split]


def test_kinds_kept_out_of_nano_are_drawn_only_by_name():
    assert set(documents.NANO_EXCLUDED_KINDS) <= set(documents.kinds())
    assert not set(documents.NANO_EXCLUDED_KINDS) & set(documents.default_kinds())
    assert not any(documents.generate(seed).kind in documents.NANO_EXCLUDED_KINDS for seed in range(30))


def test_shipped_fonts_suffice_for_every_split():
    """On a machine without any fonts each split still has families, and they are not each other's."""
    shipped = {split: {face.family for face in SHIPPED_FACES if fonts.FAMILIES[face.family].split == split} for split in fonts.SPLITS}
    assert all(shipped.values())
    assert {face.family for face in fonts.discover() if fonts.FAMILIES[face.family].split == "heldout"} == shipped["heldout"]
    assert sum(path.stat().st_size for path in fonts.SHIPPED.iterdir()) < 1_500_000


def test_clean_pictures_stay_frequent():
    names = [degrade.Plan.draw(random.Random(seed), 512, 512).names for seed in range(600)]
    assert 0.35 < sum(name == ["clean"] for name in names) / 600 < 0.5
    assert {"camera", "rotation", "perspective", "texture", "fold", "light", "blur", "noise", "jpeg"} <= {
        name for some in names for name in some
    }


def test_wrong_arguments_say_what_is_right():
    with pytest.raises(ValueError, match="available: .*receipt"):
        documents.generate(0, kind="novel")
    with pytest.raises(ValueError, match="available: train, val, heldout"):
        documents.generate(0, split="test")
    with pytest.raises(ValueError, match="at least 128x128"):
        documents.generate(0, width=64, height=64)
    with pytest.raises(ValueError, match="ask for a larger picture"):
        documents.generate(0, kind="invoice", width=128, height=128)


# ---- the held-out set


def test_heldout_documents_are_what_was_frozen():
    """A sample here; `fastvlm data heldout` checks all."""
    for size in heldout.SIZES:
        chosen = heldout.entries(size)
        assert len(chosen) == heldout.HELDOUT_COUNT >= 500
        assert set(Counter(entry["kind"] for entry in chosen).values()) == {heldout.COUNT_PER_KIND}
    for entry in heldout.entries(512)[::45]:
        document = documents.generate(entry["seed"], split="heldout", kind=entry["kind"], x_height_px=heldout.X_HEIGHT_PX, **SIZE)
        assert documents.truth_hash(document) == entry["truth"]
        assert len(document.chars) >= heldout.LEAST_CHARACTERS.get(entry["kind"], 1)


# ---- data sets


def test_a_data_set_goes_on_after_a_break_and_does_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "_PART", 4)
    options = documents.DatasetOptions(10, seed=3, kinds=("receipt", "words"), width=256, height=256, questions=3)
    whole = documents.write_dataset(tmp_path / "whole", options, progress=False)
    broken = tmp_path / "broken"
    documents.write_dataset(broken, options, workers=2, progress=False)
    for path in ("conversations.jsonl", "truth.jsonl", "parts/000001.conversations.jsonl"):
        (broken / path).unlink()
    kept = (broken / "parts/000002.conversations.jsonl").stat().st_mtime_ns
    documents.write_dataset(broken, options, progress=False)
    assert (broken / "parts/000002.conversations.jsonl").stat().st_mtime_ns == kept, "finished parts are not made again"
    for name in ("conversations.jsonl", "truth.jsonl"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    entries = [json.loads(line) for line in whole.read_text().splitlines()]
    truths = {entry["id"]: entry for entry in map(json.loads, (tmp_path / "whole/truth.jsonl").read_text().splitlines())}
    assert [entry["kind"] for entry in entries] == ["receipt", "words"] * 5
    for entry in entries:
        with Image.open(tmp_path / "whole" / entry["image"]) as picture:
            assert picture.size == (256, 256)
        turns = entry["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2) and turns[0]["value"].startswith("<image>\n")
        asked = {(qa["question"], qa["answer"]) for qa in truths[entry["id"]]["qa"]}
        assert all((q["value"].removeprefix("<image>\n"), a["value"]) in asked for q, a in zip(turns[::2], turns[1::2], strict=True))
        assert len(truths[entry["id"]]["boxes"]) == len(truths[entry["id"]]["chars"])
    with pytest.raises(ValueError, match="another data set"):
        documents.write_dataset(broken, documents.DatasetOptions(11), progress=False)


def test_the_command_writes_documents_and_lists_fonts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from fastvlm.cli import main

    assert (
        main(
            ["data", "documents", "--out", str(tmp_path / "set"), "--count", "3", "--workers", "1", "--kinds", "sign", "--size", "256x192"]
        )
        == 0
    )
    assert len((tmp_path / "set/conversations.jsonl").read_text().splitlines()) == 3
    assert (
        main(["data", "sheet", "--out", str(tmp_path / "sheet.png"), "--count", "2", "--size", "256x256", "--kinds", "words", "--boxes"])
        == 0
    )
    assert Image.open(tmp_path / "sheet.png").size == (768, 256)
    capsys.readouterr()
    assert main(["data", "fonts"]) == 0
    assert "heldout: 10 families" in capsys.readouterr().out
    assert main(["data", "documents", "--out", str(tmp_path / "none"), "--count", "1", "--kinds", "novel"]) == 2
