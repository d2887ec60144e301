"""`fastvlm cache list|clear`: the bundles that were made on the way."""

import argparse
import json
import time

HELP = "list or clear the bundles that predict, chat and load() have made"


def register(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="cache_command", metavar="WHAT", required=True)
    listing = commands.add_parser("list", help="what is there, the one used last first", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="one JSON document")
    commands.add_parser("clear", help="remove all of it", allow_abbrev=False)


def run(args: argparse.Namespace) -> int:
    from fastvlm.bundle import cache

    if args.cache_command == "clear":
        print(f"{cache.clear() / 1e9:.2f} GB freed in {cache.root()}")
        return 0
    entries = cache.entries()
    if args.json:
        print(json.dumps([{**vars(entry), "folder": str(entry.folder)} for entry in entries]))
        return 0
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        print(f"{used}  {entry.nbytes / 1e9:7.2f} GB  {entry.runtime:<12} {entry.precision:<5} {entry.label}")
    total = sum(entry.nbytes for entry in entries)
    print(f"{len(entries)} bundles, {total / 1e9:.2f} of {cache.max_bytes_allowed() / 1e9:g} GB, in {cache.root()}")
    return 0
