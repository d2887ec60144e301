"""Fonts for the documents made by code: which families there are, which split each one belongs to, and where their files lie.

    faces = fonts.discover()                      # every usable face of this machine and of the package
    fonts.families("train")                       # {"Liberation Sans": [Face, ...], ...}
    fonts.install_command()                       # the apt line that brings the rest

The families are an explicit list: a family belongs to one split for ever, whatever is installed, and one that is a redrawing of another
is in the same split. The package carries every held-out family, so that the held-out documents are the same on every machine, and enough
others to train on a machine without fonts.
"""

import functools
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

SPLITS = ("train", "val", "heldout")

# What a face must be able to draw: all that the documents print.
REQUIRED_CHARACTERS = "".join(map(chr, range(33, 127))) + "£"
OPTIONAL_CHARACTERS = "€–—•’“”…©°×éüñç"

SHIPPED = Path(__file__).parent / "fonts"

# family: class. "sans", "serif", "mono", and "narrow" (sans, for receipts and labels). A number behind a star is the family's weight in a draw:
# what browsers, office programs and till printers use is drawn more often.
_TRAIN = """
sans:   Liberation Sans*6, DejaVu Sans*5, Arimo*3, Noto Sans*3, Roboto*3, Open Sans*3, Carlito*3, Lato*2, Inter*2, Nimbus Sans*2, FreeSans*2, Cantarell*2,
        TeX Gyre Heros, TeX Gyre Adventor, URW Gothic, Andika, Dosis, Gillius ADF, Ikarius ADF Std, Libris ADF Std, Universalis ADF Std,
        Verana Sans, Veranda, Junction, Comic Neue, Comfortaa, Jura, Play, Quicksand, League Spartan, NanumGothic, NanumBarunGothic, M PLUS 1, M PLUS 2,
        Laksaman, Garuda, Loma, Waree, Tuffy, Linux Biolinum O, CMU Sans Serif, CMU Bright, Averia Sans GWF, GFS Neohellenic, okolaks,
        Tiresias Infofont, Tiresias PCfont, Tiresias LPfont, Dustismo, Latin Modern Sans, Noto Sans Display, Switzera ADF
narrow: Liberation Sans Narrow*2, Nimbus Sans Narrow*2, Roboto Condensed, Yanone Kaffeesatz, Gillius ADF No2
serif:  Liberation Serif*6, DejaVu Serif*4, Tinos*2, Noto Serif*2, Caladea*3, Nimbus Roman*2, FreeSerif*2, C059*2, P052*2, URW Bookman*2, EB Garamond,
        Linux Libertine O*2, Cardo, Charis SIL, Doulos SIL, Gentium, Gentium Plus, Gentium Book Plus, GFS Artemisia, GFS Didot, STIX, STIXGeneral, Old Standard TT,
        CMU Serif, CMU Concrete, Fanwood Text, Linden Hill, Prociono, Tribun ADF Std, Romande ADF Std, Baskervald ADF Std,
        Accanthis ADF Std, Berenis ADF Pro, Mekanus ADF Std, Yrsa, Rasa, Averia Serif GWF, Junicode Two Beta, TeX Gyre Schola, TeX Gyre Termes, TeX Gyre Bonum,
        TeX Gyre Pagella, Latin Modern Roman, Caslon, Dustismo Roman, Tymes, Noto Serif Display, ElstobD
mono:   Liberation Mono*6, DejaVu Sans Mono*5, Cousine*3, Nimbus Mono PS*2, FreeMono*2, Courier Prime*3, Noto Sans Mono*2, Noto Mono, Hack*2, JetBrains Mono*2,
        Fira Code*2, mononoki, Anonymous Pro, Fantasque Sans Mono, Monoid, Hermit, Agave, M PLUS 1 Code, Mplus Code 60, CMU Typewriter Text, Tlwg Typewriter, Aerial Mono,
        Courier Prime Code, TeX Gyre Cursor, Linux Libertine Mono O, IBM 3270
"""
_VAL = """
sans:   Oxygen-Sans, PT Sans, Manrope, Sora
narrow: PT Sans Narrow
serif:  PT Serif, Vollkorn
mono:   PT Mono, League Mono
"""
_HELDOUT = """
sans:   Go, Clear Sans, Karla, Cabin, B612
serif:  Quattrocento, Roboto Slab, Arapey
mono:   Go Mono, Inconsolata
"""

# Debian packages that hold the families above.
DEBIAN_PACKAGES = """
fonts-3270 fonts-adf-accanthis fonts-adf-baskervald fonts-adf-berenis fonts-adf-gillius fonts-adf-ikarius fonts-adf-libris fonts-adf-mekanus
fonts-adf-romande fonts-adf-switzera fonts-adf-tribun fonts-adf-universalis fonts-adf-verana fonts-agave fonts-anonymous-pro fonts-arkpandora
fonts-averia-sans-gwf fonts-averia-serif-gwf fonts-cantarell fonts-cardo fonts-cmu fonts-comfortaa fonts-comic-neue fonts-courier-prime
fonts-crosextra-caladea fonts-crosextra-carlito fonts-croscore fonts-dejavu-core fonts-dejavu-extra fonts-dosis fonts-dustin fonts-ebgaramond
fonts-elstob fonts-fantasque-sans fonts-fanwood fonts-firacode fonts-freefont-ttf fonts-georgewilliams fonts-gfs-artemisia fonts-gfs-didot
fonts-gfs-neohellenic fonts-hack fonts-hermit fonts-inter fonts-jetbrains-mono fonts-junction fonts-junicode fonts-jura fonts-lato
fonts-league-mono fonts-league-spartan fonts-liberation fonts-lindenhill fonts-linuxlibertine fonts-lmodern fonts-manrope fonts-monoid
fonts-mononoki fonts-mplus fonts-nanum fonts-noto-core fonts-noto-mono fonts-okolaks fonts-oldstandard fonts-open-sans fonts-paratype
fonts-play fonts-prociono fonts-quicksand fonts-roboto-fontface fonts-roboto-unhinted fonts-sil-andika fonts-sil-charis fonts-sil-doulos
fonts-sil-gentium fonts-sil-gentiumplus fonts-sora fonts-stix fonts-summersby fonts-texgyre fonts-tiresias fonts-tlwg-garuda-ttf
fonts-tlwg-laksaman-ttf fonts-tlwg-loma-ttf fonts-tlwg-typewriter-ttf fonts-tlwg-waree-ttf fonts-tuffy fonts-urw-base35 fonts-vollkorn
fonts-yanone-kaffeesatz fonts-yrsa-rasa
""".split()

_TOO_THIN = re.compile(r"thin|hairline|extra ?light|ultra ?light|outline|inverted|smallcaps|\bsc\b|display|titling", re.IGNORECASE)
_BOLD = re.compile(r"bold|black|heavy|demi", re.IGNORECASE)
_ITALIC = re.compile(r"italic|oblique|slanted", re.IGNORECASE)
_CONDENSED = re.compile(r"cond|narrow|ext\b|wide", re.IGNORECASE)


@dataclass(frozen=True)
class Family:
    """A family of the list. `style` is "sans", "serif", "mono" or "narrow"; `weight` its share in a draw."""

    name: str
    split: str
    style: str
    weight: int


@dataclass(frozen=True)
class Face:
    """One font file. `missing` are the optional characters that it cannot draw."""

    path: str
    family: str
    is_bold: bool
    is_italic: bool
    missing: str


def _parse(table: str, split: str) -> Iterator[Family]:
    for style, names in re.findall(r"(\w+):((?:.|\n(?!\w+:))*)", table):
        for name in names.split(","):
            name, _, weight = name.strip().partition("*")
            yield Family(name, split, style, int(weight or 1))


FAMILIES: dict[str, Family] = {
    family.name: family for table, split in ((_TRAIN, "train"), (_VAL, "val"), (_HELDOUT, "heldout")) for family in _parse(table, split)
}


def font_folders() -> list[Path]:
    """Where fonts are looked for: the package, `FASTVLM_FONTS` (folders joined as in PATH), and the system's folders."""
    named = [Path(folder) for folder in os.environ.get("FASTVLM_FONTS", "").split(os.pathsep) if folder]
    home = Path.home()
    system = [
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        Path("/usr/share/texmf/fonts/opentype/public"),
        home / ".fonts",
        home / ".local/share/fonts",
    ]
    if sys.platform == "darwin":
        system += [Path("/Library/Fonts"), home / "Library/Fonts"]
    return [SHIPPED, *named, *system]


@functools.lru_cache(maxsize=1)
def discover() -> tuple[Face, ...]:
    """Every usable face of a listed family, shipped ones first, sorted by path within a folder; takes a second once.

    A file is usable if it draws all of `REQUIRED_CHARACTERS`, each with ink, and its small letters are not capitals. A face found twice (same family and
    style) is kept once. Held-out families are taken from the package only: their pictures must not depend on what is installed.
    """
    faces: dict[tuple[str, str], Face] = {}
    for folder in font_folders():
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".ttf", ".otf")):
            try:
                font = ImageFont.truetype(str(path), 24, layout_engine=ImageFont.Layout.BASIC)
            except OSError:
                continue
            family, style = font.getname()
            family, style = (family or "").strip(), (style or "").strip()
            listed = FAMILIES.get(family)
            if listed is None or (listed.split == "heldout" and folder != SHIPPED):
                continue
            if (family, style) in faces or _TOO_THIN.search(style) or (_CONDENSED.search(style) and listed.style != "narrow"):
                continue
            if _draws(font, REQUIRED_CHARACTERS) != REQUIRED_CHARACTERS or not _has_small_letters(font):
                continue
            missing = "".join(sorted(set(OPTIONAL_CHARACTERS) - set(_draws(font, OPTIONAL_CHARACTERS))))
            faces[family, style] = Face(str(path), family, bool(_BOLD.search(style)), bool(_ITALIC.search(style)), missing)
    return tuple(faces.values())


@functools.lru_cache(maxsize=8)
def families(split: str) -> dict[str, tuple[Face, ...]]:
    """Families of a split that are here, each with its faces, an upright regular one among them.

    Raises:
        ValueError: an unknown split.
        RuntimeError: none is here, which means that the package was installed without its data.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; available: {', '.join(SPLITS)}")
    grouped: dict[str, list[Face]] = {}
    for face in discover():
        if FAMILIES[face.family].split == split:
            grouped.setdefault(face.family, []).append(face)
    whole = {name: tuple(faces) for name, faces in sorted(grouped.items()) if any(not f.is_bold and not f.is_italic for f in faces)}
    if not whole:
        raise RuntimeError(f"no font of the {split!r} split was found, not even in {SHIPPED}: reinstall fastvlm")
    return whole


def install_command() -> str:
    """The command that installs every family of the list on Debian or Ubuntu, as root."""
    return "apt-get install -y --no-install-recommends " + " ".join(DEBIAN_PACKAGES)


def _draws(font: ImageFont.FreeTypeFont, characters: str) -> str:
    """The characters that the font draws with ink and not as its box for unknown ones."""
    unknown = font.getmask("\U0010fff0")
    unknown_ink = (unknown.size, bytes(unknown))
    drawn = []
    for character in characters:
        mask = font.getmask(character)
        if mask.getbbox() is not None and (mask.size, bytes(mask)) != unknown_ink:
            drawn.append(character)
    return "".join(drawn)


def _has_small_letters(font: ImageFont.FreeTypeFont) -> bool:
    """False for fonts whose small letters are capitals: their text could not be told from its capitals."""
    x_height, cap_height = -font.getbbox("x", anchor="ls")[1], -font.getbbox("X", anchor="ls")[1]
    a_small, a_capital = font.getmask("a"), font.getmask("A")
    return 0 < x_height < 0.93 * cap_height and (a_small.size, bytes(a_small)) != (a_capital.size, bytes(a_capital))
