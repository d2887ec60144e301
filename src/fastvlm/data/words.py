"""What the documents say: words, names, numbers, dates and sentences, from lists that are disjoint between the splits.

    rng = random.Random(1)
    writer = Writer(rng, "train")
    writer.sentence()           # "The quiet engineers moved two boxes near a window."

Short function words ("the", "of") belong to every split. Every other word, name, street, product belongs to one, chosen by the hash of its first five
letters, so that the forms of one word stay together.
"""

import functools
import random
import string
import zlib
from pathlib import Path

TEXT = Path(__file__).parent / "text"

FUNCTION_WORDS = frozenset(
    """
    a an the and or but nor so yet if then than that this these those which who whom whose what when where why how
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs
    am is are was were be been being do does did done have has had having can could will would shall should may might must
    not no yes of in on at by for from to with about into over under between after before during until against among
    through without within along across behind beyond near off out up down above below since as like per via
    all any both each few more most other some such only own same too very just also even still again once here there
    now always never often every one two three four five six seven eight nine ten
    """.split()
)


def split_of(word: str) -> str:
    """The split that a content word belongs to: about 8 in 10 are for training, 1 for validation, 1 held out."""
    tenth = zlib.crc32(word.lower()[:5].encode()) % 10
    return "heldout" if tenth == 0 else "val" if tenth == 1 else "train"


@functools.cache
def read_list(name: str) -> tuple[str, ...]:
    """The entries of `text/<name>.txt`: words between blanks; lines that start with # are comments."""
    lines = (TEXT / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(word for line in lines if not line.startswith("#") for word in line.split())


@functools.cache
def content_words(split: str) -> tuple[str, ...]:
    """English words of a split, without the function words that all splits share."""
    return tuple(word for word in read_list("english") if word not in FUNCTION_WORDS and split_of(word) == split)


class Writer:
    """Writes random content for one document. `rng` decides everything: the same state gives the same text."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.split = split
        self.content = content_words(split)

    def word(self) -> str:
        """A word as it stands in running text: mostly a content word."""
        rng = self.rng
        if rng.random() < 0.3:
            return rng.choice(_FUNCTION_LIST)
        return rng.choice(self.content)

    def digits(self, low: int, high: int) -> str:
        """A string of `low` to `high` digits, the first not 0."""
        rng = self.rng
        count = rng.randint(low, high)
        return str(rng.randint(10 ** (count - 1), 10**count - 1))

    def number(self) -> str:
        """A number in one of the ways in which documents print numbers."""
        rng = self.rng
        way = rng.random()
        if way < 0.3:
            return self.digits(1, 5)
        amount = rng.choice([9.99, 99, 999, 9999, 99999]) * rng.random()
        if way < 0.6:
            return f"{amount:,.2f}"
        if way < 0.7:
            return f"{amount:.1f}"
        if way < 0.78:
            return f"{rng.choice('$£€')}{amount:,.2f}"
        if way < 0.83:
            return f"{amount:,.2f} {rng.choice(['USD', 'EUR', 'GBP', 'CHF', 'kg', 'km', 'cm', 'ml', 'pcs', 'hrs'])}"
        if way < 0.9:
            return f"{rng.randint(0, 100)}%"
        if way < 0.94:
            return f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        if way < 0.97:
            return f"-{amount:,.2f}"
        return f"({self.digits(3, 3)}) {self.digits(3, 3)}-{self.digits(4, 4)}"

    def code(self) -> str:
        """A random identifier: letters and digits that no language model could guess."""
        rng = self.rng
        way = rng.random()
        upper, letters = string.ascii_uppercase, string.ascii_letters + string.digits
        if way < 0.3:
            return "".join(rng.choices(upper, k=rng.randint(1, 4))) + rng.choice(["-", "", "", "/", " "]) + self.digits(3, 7)
        if way < 0.5:
            return "".join(rng.choices(upper + string.digits, k=rng.randint(4, 10)))
        if way < 0.65:
            return "".join(rng.choices(letters, k=rng.randint(4, 10)))
        if way < 0.8:
            return "-".join("".join(rng.choices(upper + string.digits, k=rng.randint(2, 5))) for _ in range(rng.randint(2, 4)))
        if way < 0.9:
            return " ".join(self.digits(4, 4) for _ in range(rng.randint(2, 4)))
        if way < 0.95:
            return "#" + self.digits(3, 8)
        return "".join(rng.choices("".join(map(chr, range(33, 127))), k=rng.randint(2, 8)))

    def mixed(self) -> str:
        """A word, number, code, address of a page or mail: anything that may stand alone in a picture."""
        way = self.rng.random()
        if way < 0.55:
            word = self.word()
            case = self.rng.random()
            return word if case < 0.6 else word.capitalize() if case < 0.85 else word.upper()
        if way < 0.75:
            return self.number()
        if way < 0.9:
            return self.code()
        return self.email() if way < 0.95 else self.url()

    def email(self) -> str:
        """A mail address at a made-up host."""
        rng = self.rng
        name = rng.choice([".", "_", "", "-"]).join(rng.choices(self.content, k=rng.randint(1, 2)))
        if rng.random() < 0.3:
            name += self.digits(1, 4)
        return f"{name}@{self.host()}"

    def host(self) -> str:
        """A made-up host name."""
        rng = self.rng
        ending = rng.choice(["com", "com", "com", "org", "net", "co.uk", "io", "eu", "example", "info"])
        return rng.choice(["", "-"]).join(rng.choices(self.content, k=rng.randint(1, 2))) + "." + ending

    def url(self) -> str:
        """The address of a made-up page."""
        rng = self.rng
        start = rng.choice(["www.", "https://", "https://www.", ""])
        path = "" if rng.random() < 0.5 else "/" + "/".join(rng.choices(self.content, k=rng.randint(1, 2)))
        return start + self.host() + path

    def sentence(self) -> str:
        """Words in a row with a capital, commas now and then, numbers, and an end; not always grammatical."""
        rng = self.rng
        words = []
        for _ in range(rng.randint(3, 14)):
            words.append(self.word() if rng.random() < 0.93 else self.number() if rng.random() < 0.7 else self.code())
            if rng.random() < 0.07:
                words[-1] += rng.choice(",,,;:")
        text = " ".join(words).rstrip(",;:")
        text = text[0].upper() + text[1:]
        wrapped = rng.random()
        if wrapped < 0.03:
            text = f'"{text}"'
        elif wrapped < 0.05:
            text = f"({text})"
        return text + rng.choices([".", "!", "?", ""], [85, 4, 6, 5])[0]


_FUNCTION_LIST = sorted(FUNCTION_WORDS)
