"""What the documents say: words, names, numbers, dates and sentences, from lists that are disjoint between the splits.

    rng = random.Random(1)
    writer = Writer(rng, "train")
    writer.sentence()           # "The quiet engineers moved two boxes near a window."

Short function words ("the", "of") belong to every split, and so do the words of which forms are made ("Total", "Date", "Street", "Ltd"). Every other word,
name, place, product belongs to one split, chosen by the hash of its first five letters, so that the forms of one word stay together.
"""

import datetime
import functools
import random
import string
import zlib
from collections.abc import Callable
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
    """The split that a content word belongs to: 15 in 20 are for training, 2 for validation, 3 held out."""
    bucket = zlib.crc32(word.lower()[:5].encode()) % 20
    return "heldout" if bucket < 3 else "val" if bucket < 5 else "train"


@functools.cache
def read_list(name: str) -> tuple[str, ...]:
    """The entries of `text/<name>.txt`, between commas if there are any, else between blanks; lines that start with # are comments."""
    lines = [line for line in (TEXT / f"{name}.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = " ".join(lines)
    return tuple(" ".join(entry.split()) for entry in (text.split(",") if "," in text else text.split()) if entry.strip())


@functools.cache
def entries(name: str, split: str) -> tuple[str, ...]:
    """The entries of a list that belong to a split: all words of an entry must."""
    return tuple(entry for entry in read_list(name) if all(split_of(word) == split for word in entry.split() if len(word) > 2))


@functools.cache
def _halves(name: str, split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """First words and last words of a list's entries of two words or more that belong to a split, each by itself."""
    pairs = [entry.split() for entry in read_list(name) if " " in entry]
    firsts = tuple(dict.fromkeys(words[0] for words in pairs if split_of(words[0]) == split))
    lasts = tuple(dict.fromkeys(words[-1] for words in pairs if split_of(words[-1]) == split))
    return firsts, lasts


@functools.cache
def countries(split: str) -> tuple[str, ...]:
    return tuple(country for country in COUNTRIES if split_of(country) == split)


@functools.cache
def content_words(split: str) -> tuple[str, ...]:
    """English words of a split, without the function words that all splits share."""
    return tuple(word for word in read_list("english") if word not in FUNCTION_WORDS and split_of(word) == split)


@functools.cache
def words_by_class(split: str) -> dict[str, tuple[str, ...]]:
    """Content words sorted by what their endings say they are: adverbs, past verbs, adjectives, nouns, plurals; the rest under "other"."""
    known = frozenset(read_list("english"))
    classes: dict[str, list[str]] = {"adverb": [], "past": [], "gerund": [], "adjective": [], "noun": [], "plural": [], "other": []}
    for word in content_words(split):
        if word.endswith("ly") and len(word) > 4:
            classes["adverb"].append(word)
        elif word.endswith("ed") and len(word) > 4 and (word[:-2] in known or word[:-1] in known or word[:-3] in known):
            classes["past"].append(word)
        elif word.endswith("ing") and len(word) > 5 and (word[:-3] in known or word[:-3] + "e" in known or word[:-4] in known):
            classes["gerund"].append(word)
        elif word.endswith(("able", "ible", "ful", "less", "ous", "ive", "ical", "tic", "ial", "ish")) and len(word) > 5:
            classes["adjective"].append(word)
        elif word.endswith(("tion", "sion", "ment", "ness", "ity", "ship", "ance", "ence", "ist", "ator", "age", "ure")) and len(word) > 5:
            classes["noun"].append(word)
        elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and word[:-1] in known:
            classes["plural"].append(word)
        else:
            classes["other"].append(word)
    return {name: tuple(members) for name, members in classes.items()}


class Writer:
    """Writes random content for one document. `rng` decides everything: the same state gives the same text."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.split = split
        self.content = content_words(split)
        self.classes = words_by_class(split)
        self.date_format = rng.choice(_DATE_FORMATS)
        self.separators = rng.choice(_SEPARATORS)
        self.currency = rng.choice(_CURRENCIES)
        self.uses_24_hours = rng.random() < 0.6

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
        if rng.random() < 0.5:
            return self.plain_sentence()
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

    # ---- sentences with a grammar

    def plain_sentence(self) -> str:
        """A grammatical sentence, as letters and articles have them; it need not make sense."""
        rng = self.rng
        text = rng.choice(_SENTENCES)(self)
        return text[0].upper() + text[1:].rstrip(".") + rng.choices([".", "!"], [95, 5])[0]

    def of_class(self, name: str) -> str:
        return self.rng.choice(self.classes[name])

    def noun_phrase(self) -> str:
        rng = self.rng
        way = rng.random()
        adjective = self.of_class("adjective") + " " if rng.random() < 0.4 else ""
        if way < 0.35:
            return f"{rng.choice(['the', 'the', 'our', 'your', 'this', 'their', 'any', 'each'])} {adjective}{self.of_class('noun')}"
        if way < 0.7:
            return f"{rng.choice(['the', 'our', 'your', 'these', 'all', 'some', 'two', 'three', 'several'])} {adjective}{self.of_class('plural')}"
        if way < 0.8:
            return f"{adjective}{self.of_class('plural')}"
        if way < 0.9:
            return f"{rng.randint(2, 400)} {self.of_class('plural')}"
        return self.name()

    def verb_phrase(self) -> str:
        rng = self.rng
        adverb = self.of_class("adverb") + " " if rng.random() < 0.3 else ""
        way = rng.random()
        if way < 0.6:
            return f"{adverb}{self.of_class('past')} {self.noun_phrase()}"
        if way < 0.75:
            return f"has {adverb}{self.of_class('past')} {self.noun_phrase()}"
        if way < 0.9:
            return f"was {adverb}{self.of_class('past')} by {self.noun_phrase()}"
        return f"started {self.of_class('gerund')} {self.noun_phrase()}"

    def time_phrase(self) -> str:
        rng = self.rng
        return rng.choice(
            [
                lambda: f"on {rng.choice(WEEKDAYS)}",
                lambda: f"in {rng.choice(MONTHS)}",
                lambda: f"on {self.date()}",
                lambda: f"since {rng.randint(1980, 2029)}",
                lambda: f"before {self.time()}",
                lambda: f"within {rng.randint(2, 30)} days",
                lambda: f"in {self.city()}",
                lambda: f"at {self.company()}",
            ]
        )()

    # ---- names and places

    def first_name(self) -> str:
        return self.rng.choice(entries("first_names", self.split))

    def last_name(self) -> str:
        """A family name of the list, or one made of a place's."""
        rng = self.rng
        if rng.random() < 0.75:
            return rng.choice(entries("last_names", self.split))
        return rng.choice(entries("places", self.split)) + rng.choice(["ley", "man", "son", "well", "ford", "by", "more", "wick"])

    def name(self) -> str:
        rng = self.rng
        middle = f" {rng.choice(string.ascii_uppercase)}." if rng.random() < 0.12 else ""
        return f"{self.first_name()}{middle} {self.last_name()}"

    def titled_name(self) -> str:
        return f"{self.rng.choice(['Mr', 'Mrs', 'Ms', 'Dr', 'Mr.', 'Ms.', 'Dr.', 'Prof.'])} {self.last_name()}"

    def place(self) -> str:
        return self.rng.choice(entries("places", self.split))

    def trade(self) -> str:
        return self.rng.choice(entries("trades", self.split))

    def company(self) -> str:
        rng = self.rng
        way = rng.random()
        base = self.last_name() if way < 0.3 else self.place() if way < 0.75 else self.of_class("other").capitalize()
        if way < 0.1:
            name = f"{base} & {rng.choice(['Sons', 'Daughters', 'Co', self.last_name()])}"
        elif way < 0.2:
            name = f"{base}'s {self.trade()}"
        elif way > 0.9:
            name = f"{base}{self.of_class('other')}"
        else:
            name = f"{base} {self.trade()}"
        return name + rng.choice([""] * 5 + [" Ltd", " Ltd.", " Inc.", " LLC", " GmbH", " AG", " Group", " Co.", " plc", " Corp."])

    def city(self) -> str:
        rng = self.rng
        if rng.random() < 0.6:
            return rng.choice(entries("cities", self.split))
        return self.place() + rng.choice(
            ["ton", "ville", "field", "ford", "bury", "port", "mouth", "ham", "stead", "worth", "burg", " Falls", " Bay", " Hill"]
        )

    def street(self) -> str:
        rng = self.rng
        ending = rng.choice(
            [
                "Street",
                "Road",
                "Avenue",
                "Lane",
                "Drive",
                "Way",
                "Close",
                "Court",
                "Square",
                "St",
                "Rd",
                "Ave",
                "St.",
                "Blvd",
                "Place",
                "Terrace",
                "Row",
            ]
        )
        number = str(rng.randint(1, 400)) + rng.choice([""] * 12 + ["a", "b", "A", "C"])
        start = f"{number} {self.place()} {ending}"
        return start if rng.random() < 0.85 else f"{start}, {rng.choice(['Apt', 'Unit', 'Suite', 'Flat'])} {rng.randint(1, 99)}"

    def postcode(self) -> str:
        rng = self.rng
        letters = string.ascii_uppercase
        way = rng.random()
        if way < 0.4:
            return self.digits(5, 5)
        if way < 0.7:
            return f"{rng.choice(letters)}{rng.choice(letters)}{rng.randint(1, 29)} {rng.randint(1, 9)}{rng.choice(letters)}{rng.choice(letters)}"
        if way < 0.85:
            return f"{rng.choice(letters)}{rng.choice(letters)} {self.digits(5, 5)}"
        return self.digits(4, 4)

    def town_line(self) -> str:
        """The last line of an address."""
        rng = self.rng
        way = rng.random()
        if way < 0.5:
            return f"{self.city()} {self.postcode()}"
        return f"{self.postcode()} {self.city()}" if way < 0.75 else f"{self.city()}, {self.postcode()}"

    def country(self) -> str:
        return self.rng.choice(countries(self.split))

    def phone(self) -> str:
        rng = self.rng
        d = lambda n: "".join(rng.choices(string.digits, k=n))  # noqa: E731
        return rng.choice(
            [
                f"({d(3)}) {d(3)}-{d(4)}", f"{d(3)}-{d(3)}-{d(4)}", f"+{rng.randint(1, 99)} {d(3)} {d(3)} {d(3)}", f"+{rng.randint(1, 99)} {d(2)} {d(4)} {d(4)}",
                f"0{d(4)} {d(6)}", f"0{d(3)} {d(3)} {d(4)}", f"{d(3)}.{d(3)}.{d(4)}", f"+{rng.randint(1, 99)} ({d(1)}) {d(3)}-{d(5)}",
            ]
        )  # fmt: skip

    def product(self) -> str:
        """Something that a shop sells, sometimes with a word or a size."""
        rng = self.rng
        text = self.goods("products")
        if rng.random() < 0.25:
            text = f"{self.of_class('adjective')} {text}"
        if rng.random() < 0.25:
            text += " " + rng.choice(
                ["500g", "1kg", "250 ml", "1L", "2L", "330ml", "6 pk", "x4", "100g", "750ml", "12pk", "small", "large", "XL"]
            )
        return text

    def service(self) -> str:
        """Something that a company sells to another."""
        rng = self.rng
        text = self.goods("services")
        way = rng.random()
        if way < 0.2:
            return f"{self.of_class('adjective')} {text}"
        if way < 0.35:
            return f"{text} {self.code_word()}"
        if way < 0.5:
            return f"{text} for {self.of_class('other')}"
        return text

    def goods(self, name: str) -> str:
        """An entry of a list of goods, or two words of its entries joined anew."""
        rng = self.rng
        if rng.random() < 0.5:
            return rng.choice(entries(name, self.split))
        firsts, lasts = _halves(name, self.split)
        return f"{rng.choice(firsts)} {rng.choice(lasts)}"

    def code_word(self) -> str:
        """A short model number."""
        rng = self.rng
        return "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 3))) + rng.choice(["-", ""]) + self.digits(1, 4)

    def identifier(self) -> str:
        """A number or code as documents carry: INV-2041, 00482911, A7K-993."""
        rng = self.rng
        way = rng.random()
        upper = string.ascii_uppercase
        if way < 0.3:
            return f"{''.join(rng.choices(upper, k=rng.randint(1, 4)))}-{self.digits(3, 7)}"
        if way < 0.5:
            return self.digits(4, 10)
        if way < 0.6:
            return "".join(rng.choices(string.digits, k=rng.randint(6, 9)))
        if way < 0.75:
            return f"{rng.randint(2015, 2029)}{rng.choice(['-', '/', ''])}{self.digits(3, 5)}"
        if way < 0.9:
            return "".join(rng.choices(upper + string.digits, k=rng.randint(6, 10)))
        return f"{''.join(rng.choices(upper, k=2))} {self.digits(2, 3)} {self.digits(3, 4)}"

    # ---- numbers, money, dates, in one manner for the whole document

    def date(self, after: datetime.date | None = None) -> str:
        """A date in the document's format; within two months after `after` if given."""
        return self.print_date(self.day(after))

    def day(self, after: datetime.date | None = None) -> datetime.date:
        if after is not None:
            return after + datetime.timedelta(days=self.rng.randint(1, 60))
        return datetime.date(1990, 1, 1) + datetime.timedelta(days=self.rng.randint(0, 14900))

    def print_date(self, day: datetime.date) -> str:
        return self.date_format(day)

    def time(self) -> str:
        rng = self.rng
        hour, minute = rng.randint(0, 23), rng.randint(0, 59)
        if self.uses_24_hours:
            return f"{hour:02}:{minute:02}"
        return f"{(hour - 1) % 12 + 1}:{minute:02} {'AM' if hour < 12 else 'PM'}"

    def amount(self, value: float, decimals: int = 2) -> str:
        """A number with the document's separators, without currency."""
        text = f"{value:,.{decimals}f}"
        thousands, point = self.separators
        return text.replace(",", "\0").replace(".", point).replace("\0", thousands)

    def money(self, value: float) -> str:
        """A number with the document's currency."""
        before, after = self.currency
        sign = "-" if value < 0 else ""
        return f"{sign}{before}{self.amount(abs(value))}{after}"

    def count(self, value: int) -> str:
        return self.amount(value, 0)

    def percent(self) -> str:
        rng = self.rng
        return f"{rng.randint(1, 99)}%" if rng.random() < 0.7 else f"{self.amount(rng.uniform(0, 30), 1)}%"


def _ordinal(day: int) -> str:
    return f"{day}{'th' if 10 <= day % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COUNTRIES = (
    """
Argentina, Australia, Austria, Belgium, Brazil, Bulgaria, Canada, Chile, China, Colombia, Croatia, Cyprus, Denmark, Egypt, Estonia, Finland, France, Germany, Ghana, Greece,
Hungary, Iceland, India, Indonesia, Ireland, Israel, Italy, Japan, Kenya, Latvia, Lithuania, Luxembourg, Malaysia, Malta, Mexico, Morocco, Netherlands, New Zealand, Nigeria,
Norway, Peru, Philippines, Poland, Portugal, Romania, Serbia, Singapore, Slovakia, Slovenia, South Africa, South Korea, Spain, Sweden, Switzerland, Thailand, Turkey, Ukraine,
United Kingdom, United States, Uruguay, Vietnam
""".replace("\n", " ")
    .strip()
    .split(", ")
)

_DATE_FORMATS: tuple[Callable[[datetime.date], str], ...] = (
    lambda d: d.strftime("%d/%m/%Y"),
    lambda d: d.strftime("%m/%d/%Y"),
    lambda d: d.strftime("%Y-%m-%d"),
    lambda d: d.strftime("%d.%m.%Y"),
    lambda d: d.strftime("%d-%m-%Y"),
    lambda d: d.strftime("%d/%m/%y"),
    lambda d: f"{d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}",
    lambda d: f"{d.day} {MONTHS[d.month - 1][:3]} {d.year}",
    lambda d: f"{MONTHS[d.month - 1][:3]} {d.day}, {d.year}",
    lambda d: f"{d.day:02}-{MONTHS[d.month - 1][:3]}-{d.year}",
    lambda d: f"{_ordinal(d.day)} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{d.month}/{d.day}/{d.year}",
    lambda d: f"{d.day:02} {MONTHS[d.month - 1][:3].upper()} {d.year}",
)

_SEPARATORS = ((",", "."), (",", "."), (",", "."), ("", "."), ("", "."), (".", ","), (" ", ","), ("'", "."))
_CURRENCIES = (
    ("$", ""), ("$", ""), ("$", ""), ("£", ""), ("£", ""), ("€", ""), ("", " €"), ("€ ", ""), ("", ""), ("", ""), ("$ ", ""), ("", " EUR"), ("USD ", ""), ("", " USD"), ("CHF ", ""),
    ("", " kr"), ("GBP ", ""), ("Rs. ", ""), ("A$", ""), ("R$ ", ""), ("", " PLN"),
)  # fmt: skip

_SENTENCES: tuple[Callable[[Writer], str], ...] = (
    lambda w: f"{w.noun_phrase()} {w.verb_phrase()}",
    lambda w: f"{w.noun_phrase()} {w.verb_phrase()} {w.time_phrase()}",
    lambda w: f"{w.time_phrase()}, {w.noun_phrase()} {w.verb_phrase()}",
    lambda w: f"we {w.of_class('adverb')} {w.of_class('past')} {w.noun_phrase()}",
    lambda w: f"{w.noun_phrase()} {w.verb_phrase()}, but {w.noun_phrase()} {w.verb_phrase()}",
    lambda w: f"{w.noun_phrase()} and {w.noun_phrase()} {w.of_class('past')} {w.time_phrase()}",
    lambda w: f"this was {w.of_class('adverb')} {w.of_class('past')} by {w.name()} of {w.company()}",
    lambda w: f"there were {w.of_class('adjective')} {w.of_class('plural')} {w.time_phrase()}",
    lambda w: f"if {w.noun_phrase()} {w.of_class('past')}, we will be {w.of_class('gerund')} {w.noun_phrase()}",
    lambda w: f"you can {w.of_class('other')} {w.noun_phrase()} for {w.money(w.rng.uniform(1, 900))}",
    lambda w: f"{w.of_class('gerund')} {w.of_class('plural')} is {w.of_class('adverb')} {w.of_class('adjective')}",
    lambda w: f"{w.name()} {w.verb_phrase()} {w.time_phrase()}",
)

_FUNCTION_LIST = sorted(FUNCTION_WORDS)
