"""`fastvlm pull NAME`: fetch a checkpoint, check it, and say under which terms it may be used."""

import argparse
import sys
from pathlib import Path
from typing import Any

HELP = "download a checkpoint, from Apple's server or the Hugging Face hub"


def register(parser: argparse.ArgumentParser) -> None:
    from fastvlm.checkpoint.hub import BASE_URL, RELEASES

    names = ", ".join(RELEASES)
    parser.add_argument("name", metavar="NAME", help=f"one of {names}; or a hub id such as apple/FastVLM-0.5B")
    parser.add_argument(
        "--source", choices=["zip", "hub"], help="where a short name comes from: Apple's zip, or the hub (default: zip)"
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to make (default: in the cache, where --model NAME finds it)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument("--base-url", default=BASE_URL, metavar="URL", help="a mirror of Apple's zips (default: %(default)s)")
    parser.add_argument("--sha256", metavar="HEX", help="refuse a zip of another hash")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from fastvlm.checkpoint.hub import LICENSE_TERMS, RELEASES, pull

    if args.name in RELEASES or args.name.lower().startswith("apple/"):
        print(LICENSE_TERMS, file=sys.stderr)
    elif "/" in args.name:
        print(f"{args.name} comes under its own licence: read its page or the LICENSE file before you use it.", file=sys.stderr)
    bar = _Bar(quiet=args.quiet)
    try:
        folder = pull(
            args.name,
            source=args.source,
            out=args.out,
            base_url=args.base_url,
            revision=args.revision,
            expected_sha256=args.sha256,
            on_progress=bar.update,
            on_step=bar.step,
        )
    finally:
        bar.close()
    licenses = [path.name for path in sorted(folder.iterdir()) if path.name.upper().startswith(("LICEN", "NOTICE"))]
    if licenses:
        print(f"the licence is in {', '.join(str(folder / name) for name in licenses)}", file=sys.stderr)
    is_named = args.out is None and args.revision is None
    print(f"use it: fastvlm predict --model {args.name if is_named else folder} --image FILE --prompt TEXT", file=sys.stderr)
    print(folder)
    return 0


class _Bar:
    """A progress bar on stderr, one for each step."""

    def __init__(self, quiet: bool):
        self._quiet, self._label = quiet, ""
        self._bar: Any = None

    def step(self, text: str) -> None:
        self.close()
        self._label = text.split(" ", 1)[0]
        print(text, file=sys.stderr)

    def update(self, done: int, total: int | None) -> None:
        if self._quiet:
            return
        from tqdm import tqdm

        if self._bar is None or done < self._bar.n or total != self._bar.total:
            self.close()
            # `initial`: what an earlier run has fetched does not count into the speed
            self._bar = tqdm(total=total, initial=done, desc=self._label, unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
