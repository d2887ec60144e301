"""Metrics against hand-computed cases and against other implementations: lmms-eval's, the package anls, jiwer."""

import importlib.util
import random
from pathlib import Path
from types import ModuleType

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
    assert relaxed_accuracy("1,040", ["1,000"]) == 0  # texts, for ChartQA
    assert relaxed_accuracy("0.51", ["50%"]) == 1
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


def lmms_eval(file: str) -> ModuleType:
    """One file of lmms-eval by its path: importing the package would need all that its hundred tasks use."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package lmms-eval, installed with --no-deps")
    path = Path(spec.submodule_search_locations[0]) / "tasks" / file
    file_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module)
    return module


WORDS = [
    "two", "The", "a cat", "don't", "dont", "isnt", "it's", "what's", "whats", "3.5", "1,000", "12%", "50 %", "U.S.A.", "yes",
    "Yes!", "no.", "red/blue", "red / blue", "(left)", "e-mail", "10:30", "new-york", "ten", "none", "$5", "0", "0.0", "-4",
    "1e3", "hello world", "[x]", "o'clock", "5 o'clock", "theyre", "a.b", "v1.2.", "\n", "x\ty", "café", "A", "an apple", "hasnt",
    "wont", "?", "what?",
]  # fmt: skip


def samples(count: int = 3000):
    """Predictions and answers that often nearly agree."""
    rng = random.Random(7)
    for _ in range(count):
        answers = [" ".join(rng.choices(WORDS, k=rng.randint(1, 3))) for _ in range(10)]
        if rng.random() < 0.7:
            answers[rng.randint(1, 5) :] = answers[:1] * len(answers[rng.randint(1, 5) :])
        prediction = rng.choice([answers[0], answers[0].lower(), answers[0].upper(), answers[0] + ".", rng.choice(WORDS)])
        yield prediction, answers


def test_vqa_accuracy_is_lmms_evals():
    """The processor of its TextVQA task, and its leave-one-out rule."""
    process = lmms_eval("_task_utils/vqa_eval_metric.py").EvalAIAnswerProcessor()
    positive = 0
    for prediction, answers in samples():
        processed = [process(answer) for answer in answers]
        scores = []
        for index in range(len(processed)):
            others = processed[:index] + processed[index + 1 :]
            scores.append(min(1.0, others.count(process(prediction)) / 3))
        expected = sum(scores) / len(scores)
        positive += expected > 0
        assert vqa_accuracy(prediction, answers) == pytest.approx(expected), (prediction, answers)
    assert positive > 1000


def test_vqa_contractions_are_lmms_evals():
    process = lmms_eval("_task_utils/vqa_eval_metric.py").EvalAIAnswerProcessor()
    from fastvlm.evaluate.metrics import _CONTRACTIONS, _normalise_vqa

    for short, long in _CONTRACTIONS.items():
        assert process(short) == _normalise_vqa(short) == long, short


def test_relaxed_accuracy_is_lmms_evals():
    relaxed_correctness = lmms_eval("chartqa/utils.py").relaxed_correctness
    rng = random.Random(3)
    outcomes = set()
    for _ in range(3000):
        target = rng.choice([f"{rng.uniform(0, 100):.1f}", str(rng.randint(0, 50)), f"{rng.randint(1, 99)}%", "0", "1,200", "Yes", "blue"])
        near = rng.choice([target, target.upper(), f"{rng.uniform(0.9, 1.1) * 37:.2f}", "0.5", "no", "12%", "1200"])
        if target.replace(".", "").isdigit() and rng.random() < 0.6:
            near = f"{float(target) * rng.uniform(0.92, 1.08):.3f}"
        expected = relaxed_correctness(near, target)
        outcomes.add(expected)
        assert relaxed_accuracy(near, [target]) == float(expected), (near, target)
    assert outcomes == {True, False}


def test_anls_is_the_package_anls():
    """And lmms-eval's, but at a similarity of exactly one half, which counts there and not in the paper."""
    anls_score = pytest.importorskip("anls").anls_score
    positive = 0
    for prediction, answers in samples():
        expected = anls_score(prediction, answers)
        positive += 0 < expected < 1
        assert anls(prediction, answers) == pytest.approx(expected), (prediction, answers)
    assert positive > 200


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "B.",
        "(C)",
        "The answer is B",
        "Answer: C",
        "(A) a cat",
        "B. a dog",
        "It must be (D)",
        "The answer is (B).",
    ],
)
def test_choices_are_lmms_evals(text):
    """Where a text names one option; where it names none, lmms-eval draws one at random and we count it as wrong."""
    parse = lmms_eval("_task_utils/mmmu_mcq_utils.py").parse_mmmu_multi_choice_response
    names = {"A": "a cat", "B": "a dog", "C": "a bird", "D": "a fish"}
    assert choice_letter(text) == parse(text, list(names), names)
