"""`fastvlm data`: document pictures with exact ground truth, made by code; the fonts for them; the held-out set."""

import argparse
import os
import sys
from pathlib import Path

HELP = "make document pictures with exact ground truth"


def register(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="data_command", metavar="WHAT", required=True)
    documents = commands.add_parser(
        "documents", help="write a data set of documents, as LLaVA conversations with boxes", allow_abbrev=False
    )
    documents.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; a run that was broken off goes on there"
    )
    documents.add_argument("--count", type=int, required=True, metavar="N", help="documents")
    documents.add_argument("--questions", type=int, default=6, metavar="N", help="a document (default: %(default)s)")
    documents.add_argument("--format", choices=["png", "jpg"], default="png", help="of the pictures (default: %(default)s)")
    documents.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: %(default)s)")
    _add_choices(documents)
    sheet = commands.add_parser("sheet", help="one picture with many documents side by side, to look at", allow_abbrev=False)
    sheet.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write")
    sheet.add_argument("--count", type=int, default=9, metavar="N", help="documents (default: %(default)s)")
    sheet.add_argument("--boxes", action="store_true", help="draw the box of every character")
    _add_choices(sheet)
    commands.add_parser("fonts", help="list the fonts that are found, and what to install for more", allow_abbrev=False)
    heldout = commands.add_parser("heldout", help="check that the held-out documents are what was frozen", allow_abbrev=False)
    heldout.add_argument("--size", type=int, default=512, metavar="PX", help="side of the pictures (default: %(default)s)")


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed makes the same documents (default: %(default)s)")
    parser.add_argument(
        "--split", choices=["train", "val", "heldout"], default="train", help="fonts, layouts and words (default: %(default)s)"
    )
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="kinds of documents (default: all that nano is trained on)")
    parser.add_argument("--size", type=_size, metavar="WxH", help="of the pictures in pixels (default: what suits the kind)")
    parser.add_argument(
        "--x-height", type=float, nargs=2, default=(6.0, 14.0), metavar=("MIN", "MAX"), help="height of a small x in pixels (default: 6 14)"
    )
    parser.add_argument("--degradation", type=float, choices=[0.0, 1.0], help="0: clean pictures, 1: degraded ones (default: both)")


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512x768") from None
    return width, height


def run(args: argparse.Namespace) -> int:
    return {"documents": _documents, "sheet": _sheet, "fonts": _fonts, "heldout": _heldout}[args.data_command](args)


def _documents(args: argparse.Namespace) -> int:
    from fastvlm.cli import UsageError
    from fastvlm.data import documents

    if args.workers < 1:
        raise UsageError(f"--workers is {args.workers}; expected at least 1")
    width, height = args.size or (None, None)
    try:
        options = documents.DatasetOptions(
            args.count, args.seed, args.split, tuple(args.kinds) if args.kinds else None, width, height, tuple(args.x_height),
            args.degradation, args.questions, args.format,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    print(documents.write_dataset(args.out, options, workers=args.workers))
    return 0


def _sheet(args: argparse.Namespace) -> int:
    from fastvlm.cli import UsageError
    from fastvlm.data import documents

    names = args.kinds or documents.default_kinds()
    if unknown := sorted(set(names) - set(documents.kinds())):
        raise UsageError(f"unknown kinds {', '.join(unknown)}; available: {', '.join(documents.kinds())}")
    width, height = args.size or (512, 512)
    made = [
        documents.generate(
            args.seed + number, split=args.split, kind=names[number % len(names)], width=width, height=height,
            x_height_px=tuple(args.x_height), degradation=args.degradation,
        )
        for number in range(args.count)
    ]  # fmt: skip
    documents.contact_sheet(made, boxes=args.boxes).save(args.out)
    print(args.out)
    return 0


def _fonts(args: argparse.Namespace) -> int:
    from fastvlm.data import fonts

    found = 0
    for split in fonts.SPLITS:
        families = fonts.families(split)
        found += len(families)
        print(f"{split}: {len(families)} families, {sum(map(len, families.values()))} faces")
        for name, faces in families.items():
            print(f"  {name} ({fonts.FAMILIES[name].style}, {len(faces)} faces)")
    absent = [name for name in fonts.FAMILIES if not any(name in fonts.families(split) for split in fonts.SPLITS)]
    if absent:
        print(f"{len(absent)} families of the list are absent; on Debian or Ubuntu, as root:", file=sys.stderr)
        print(fonts.install_command(), file=sys.stderr)
    return 0


def _heldout(args: argparse.Namespace) -> int:
    from fastvlm.data import heldout

    found = heldout.differences(args.size)
    for sentence in found:
        print(sentence, file=sys.stderr)
    print(f"{heldout.HELDOUT_COUNT - len(found)} of {heldout.HELDOUT_COUNT} documents of {args.size}x{args.size} are as frozen")
    return 1 if found else 0
