"""The field's metrics. Each takes a prediction and the accepted answers and returns a score in [0, 1], or an error rate where it says so.

anls("12.50", ["12,50", "€12.50"])        # 0.8: one edit on five characters against the nearest answer
"""

import re
from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

Metric = Callable[[str, Sequence[str]], float]

# VQAv2's evaluation treats these alike in prediction and answer.
_NUMBER_WORDS = {
    **{word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())},
    "none": "0",
}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NEGATED = "are ca could did does do had has have is might must need ought sha should was were wo would".split()
# "dont" is compared as "don't"
_CONTRACTIONS = {f"{verb}nt": f"{verb}n't" for verb in _NEGATED} | {
    word.replace("'", ""): word
    for word in (
        "could've might've must've should've would've we've they've you've who've what've "
        "that's what's where's who's why's how's there's he's "
        "they'd you'd who'd how'd where'd there'd they'll you'll who'll what'll why'll how'll "
        "they're you're what're why're there're o'clock ma'am y'all"
    ).split()
}


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity, of one question (DocVQA; arXiv 1905.13648, equation 1).

    1 - distance / longer length against the nearest answer, in lower case with blanks collapsed; 0 from `threshold` distance on.
    """
    best = 0.0
    for answer in answers:
        left, right = _collapse(prediction).lower(), _collapse(answer).lower()
        distance = Levenshtein.normalized_distance(left, right)
        if distance < threshold:
            best = max(best, 1 - distance)
    return best


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers, in lower case with blanks collapsed."""
    return float(_collapse(prediction).lower() in {_collapse(answer).lower() for answer in answers})


def relaxed_accuracy(prediction: str, answers: Sequence[str], tolerance: float = 0.05) -> float:
    """ChartQA (arXiv 2203.10244, section 5): numbers within 5 % of the answer count, other answers must match.

    A number is what the field's evaluations take for one: digits, a point, a percent sign. "1,200" and "$5" are texts.
    """
    for answer in answers:
        expected, actual = _to_number(answer), _to_number(prediction)
        if expected and actual is not None:
            if abs(actual - expected) <= tolerance * abs(expected):
                return 1.0
        elif exact_match(prediction, [answer]):
            return 1.0
    return 0.0


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQAv2 and TextVQA: min(1, matches / 3), averaged over leaving out each of the (ten) people who answered."""
    normalised = [_normalise_vqa(answer) for answer in answers]
    predicted = _normalise_vqa(prediction)
    if len(normalised) == 1:  # data sets with one answer have nobody to leave out
        return float(predicted == normalised[0])
    matches = normalised.count(predicted)
    scores = [min(1.0, (matches - (answer == predicted)) / 3) for answer in normalised]
    return sum(scores) / len(scores)


def multiple_choice(prediction: str, answers: Sequence[str]) -> float:
    """1 if the letter that the prediction names is the answer's: "B", "(B)", "B. a cat", "The answer is B"."""
    letter = choice_letter(prediction)
    return float(letter is not None and letter in {choice_letter(answer) for answer in answers})


def choice_letter(text: str) -> str | None:
    """The option a text names, or None when it names none or several."""
    stripped = text.strip()
    if match := re.match(r"\(?([A-Za-z])(?:[).:,]|\s*$)", stripped):
        return match.group(1).upper()
    if match := re.search(r"(?:answer|option|choice)\s*(?:is|:)?\s*\(?([A-Z])\b", stripped, re.IGNORECASE):
        return match.group(1).upper()
    named = set(re.findall(r"\(([A-Z])\)", stripped)) or set(re.findall(r"\b([B-HJ-Z])\b", stripped))
    return named.pop() if len(named) == 1 else None


def character_error_rate(prediction: str, answers: Sequence[str]) -> float:
    """Edits per character of the nearest answer, blanks collapsed and case kept. An error rate: 0 is best, and it may exceed 1."""
    return min(_error_rate(list(_collapse(prediction)), list(_collapse(answer))) for answer in answers)


def word_error_rate(prediction: str, answers: Sequence[str]) -> float:
    """Edits per word of the nearest answer. An error rate: 0 is best, and it may exceed 1."""
    return min(_error_rate(prediction.split(), answer.split()) for answer in answers)


METRICS: dict[str, Metric] = {
    "anls": anls,
    "exact_match": exact_match,
    "relaxed_accuracy": relaxed_accuracy,
    "vqa_accuracy": vqa_accuracy,
    "multiple_choice": multiple_choice,
    "cer": character_error_rate,
    "wer": word_error_rate,
}
LOWER_IS_BETTER = frozenset({"cer", "wer"})


def _collapse(text: str) -> str:
    return " ".join(text.split())


def _error_rate(prediction: list[str], answer: list[str]) -> float:
    if not answer:
        return float(bool(prediction))
    return Levenshtein.distance(prediction, answer) / len(answer)


def _to_number(text: str) -> float | None:
    """Percentages as shares."""
    stripped = text.strip()
    try:
        return float(stripped.rstrip("%")) / 100 if stripped.endswith("%") else float(stripped)
    except ValueError:
        return None


def _normalise_vqa(text: str) -> str:
    """What VQAv2's evaluation compares: no case, punctuation and articles; digits for number words; apostrophes put back.

    A mark that stands beside a blank somewhere goes without a trace, others leave a blank; a point stays before a digit.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").replace("\n", " ").replace("\t", " ").strip()
    cleaned = text
    for mark in _PUNCTUATION:
        cleaned = cleaned.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [_NUMBER_WORDS.get(word, word) for word in cleaned.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
