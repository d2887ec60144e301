"""Metrics against hand-computed cases and, for error rates, jiwer."""

import random

import pytest

from fastvlm.evaluate.metrics import (
    anls,
    character_error_rate,
    choice_letter,
    exact_match,
    multiple_choice,
    relaxed_accuracy,
    vqa_accuracy,
    word_error_rate,
)


def slow_distance(left, right) -> int:
    """Levenshtein by its definition."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row = row, [i]
        for j, b in enumerate(right, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (a != b)))
    return row[-1]


def test_anls_by_hand():
    assert anls("Hello  World", ["hello world"]) == 1.0
    assert anls("hallo", ["hello"]) == pytest.approx(0.8)
    assert anls("abcd", ["abxy"]) == 0.0  # half of it is wrong: not below the threshold
    assert anls("12.50", ["nothing", "12.5"]) == pytest.approx(0.8)
    assert anls("", [""]) == 1.0
    assert anls("", ["x"]) == 0.0


def test_error_rates_match_the_definition():
    rng = random.Random(0)
    for _ in range(50):
        left, right = (" ".join("".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 6))) for _ in range(2))
        assert character_error_rate(left, [right]) == pytest.approx(slow_distance(left, right) / len(right))
        assert word_error_rate(left, [right]) == pytest.approx(slow_distance(left.split(), right.split()) / len(right.split()))
        assert anls(left, [right]) == pytest.approx(
            1 - slow_distance(left, right) / max(len(left), len(right))
            if slow_distance(left, right) / max(len(left), len(right)) < 0.5
            else 0
        )


def test_error_rates_match_jiwer():
    jiwer = pytest.importorskip("jiwer")
    pairs = [("the cat sat", "the cat sat down"), ("a quick fox", "a quack fox jumps"), ("total 12.50", "Total: 12.50")]
    for prediction, answer in pairs:
        assert character_error_rate(prediction, [answer]) == pytest.approx(jiwer.cer(answer, prediction))
        assert word_error_rate(prediction, [answer]) == pytest.approx(jiwer.wer(answer, prediction))


def test_error_rates_take_the_nearest_answer():
    assert character_error_rate("abc", ["xyz", "abc"]) == 0
    assert character_error_rate("abcdef", ["abc"]) == 1.0
    assert character_error_rate("", [""]) == 0


def test_relaxed_accuracy_by_hand():
    assert relaxed_accuracy("104", ["100"]) == 1
    assert relaxed_accuracy("105.1", ["100"]) == 0
    assert relaxed_accuracy("1,040", ["$1,000"]) == 1
    assert relaxed_accuracy("51%", ["50%"]) == 1
    assert relaxed_accuracy("0", ["0"]) == 1
    assert relaxed_accuracy("0.01", ["0"]) == 0
    assert relaxed_accuracy("yes", ["Yes"]) == 1
    assert relaxed_accuracy("no", ["Yes"]) == 0


def test_vqa_accuracy_by_hand():
    answers = ["two"] * 2 + ["three"] * 8
    # of the ten ways to leave one out, two leave one match and eight leave two
    assert vqa_accuracy("2", answers) == pytest.approx((2 * (1 / 3) + 8 * (2 / 3)) / 10)
    assert vqa_accuracy("three.", answers) == 1.0
    assert vqa_accuracy("The dog", ["dog"]) == 1.0
    assert vqa_accuracy("2.5", ["2.5"]) == 1.0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B. a cat", "B"),
        ("The answer is C", "C"),
        ("It is (D).", "D"),
        ("a cat", None),
        ("A or B: (A) and (B)", None),
        ("", None),
    ],
)
def test_choice_letters(text, letter):
    assert choice_letter(text) == letter


def test_matches():
    assert exact_match(" Yes ", ["yes"]) == 1
    assert multiple_choice("C) blue", ["C"]) == 1
    assert multiple_choice("blue", ["C"]) == 0
