"""`fastvlm info MODEL`: what a checkpoint or a bundle is, without loading its weights."""

import argparse
import json
from typing import Any

from fastvlm.cli._options import DEFAULT_MODEL

HELP = "print what a checkpoint or a bundle is: sizes, context, licence, accuracy, anything unusual"


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help="as for predict --model (default: %(default)s)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from fastvlm.bundle import Bundle, is_bundle
    from fastvlm.checkpoint import open_checkpoint

    description = Bundle.open(args.model).describe() if is_bundle(args.model) else open_checkpoint(args.model, args.revision).describe()
    if args.json:
        print(json.dumps(description, ensure_ascii=False, default=str))
    else:
        _print(description)
    return 0


def _print(description: dict[str, Any]) -> None:
    width = max(len(name) for name in description)
    for name, value in description.items():
        lines = _lines(value)
        print(f"{name.replace('_', ' '):<{width}}  {lines[0] if lines else '-'}")
        for line in lines[1:]:
            print(f"{'':<{width}}  {line}")


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{name.replace('_', ' ')}: {_short(item)}" for name, item in value.items()]
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, str)) for item in value):
        return [_short(item) for item in value]
    return str(_short(value)).splitlines()


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return "-" if value is None else str(value)
