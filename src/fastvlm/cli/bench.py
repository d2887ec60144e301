"""`fastvlm bench ttft` and `fastvlm bench scaling`: how fast this is here, beside peers and beside what the machine can do."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvlm.cli import UsageError
from fastvlm.cli._options import add_model_options, side_px
from fastvlm.plugins import list_plugins

HELP = "measure the time to the first token, against other programs and against the hardware"
PEERS = "fastvlm.bench.peers"
SHAPES = ("nano", "0.5b", "1.5b", "7b")
LAST = ("llava_onevision", "llava_1_5")  # a minute a run


def register(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", title="benchmarks", required=True)
    ttft = kinds.add_parser("ttft", help="one model: first, cold and warm runs, peers, shares of the machine's peaks", allow_abbrev=False)
    add_model_options(ttft)
    _add_common(ttft)
    ttft.add_argument("--random", choices=SHAPES, help="random weights of this size instead of --model: speed does not depend on weights")
    ttft.add_argument("--image", metavar="FILE", help="a picture (default: a page of 3000 x 4000 pixels, drawn)")
    ttft.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="tokens of the answer (default: %(default)s)")
    ttft.add_argument(
        "--phases", nargs="+", choices=["first", "cold", "warm"], default=["first", "cold", "warm"],
        help="first: with empty caches; cold: new processes; warm: one process (default: all)",
    )  # fmt: skip
    ttft.add_argument(
        "--peers", nargs="*", choices=["all", *list_plugins(PEERS)], metavar="NAME",
        help=f"programs to compare with; without names all of them: {', '.join(list_plugins(PEERS))}",
    )  # fmt: skip
    ttft.add_argument("--operators", action="store_true", help="also list how long each kind of operator takes (openvino runtime)")
    ttft.add_argument("--no-hardware", action="store_true", help="leave out measuring the machine's peaks (a minute)")

    scaling = kinds.add_parser("scaling", help="over resolutions and model sizes, with a plot", allow_abbrev=False)
    _add_common(scaling)
    scaling.add_argument("--runtime", default="auto", help="as for predict (default: auto)")
    scaling.add_argument("--dtype", default="auto", metavar="TYPE", help="as for predict (default: auto)")
    scaling.add_argument("--threads", type=int, metavar="N", help="as for predict")
    scaling.add_argument(
        "--sizes", nargs="+", choices=SHAPES, default=["0.5b", "1.5b", "7b"], help="models of random weights (default: all three)"
    )
    scaling.add_argument(
        "--resolutions", nargs="+", type=side_px, default=[256, 512, 768, 1024, 1536, 2048], metavar="PX",
        help="multiples of 64, default: 256 to 2048",
    )  # fmt: skip
    scaling.add_argument(
        "--onevision", nargs="*", type=int, default=[384, 768, 1152], metavar="PX",
        help="resolutions of LLaVA-OneVision-0.5B, multiples of 384; none leaves it out (default: 384 768 1152)",
    )  # fmt: skip


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="measured runs of each (default: %(default)s)")
    parser.add_argument("--text-tokens", type=int, default=40, metavar="N", help="of the prompt, beside the picture (default: %(default)s)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where random checkpoints are kept (default: the cache folder)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the tables and the JSON (and the plot) into this folder")
    parser.add_argument("--name", metavar="NAME", help="of the files in --out (default: the benchmark and the model)")
    parser.add_argument("--continue", dest="is_continued", action="store_true", help="measure only what the files in --out lack")


def run(args: argparse.Namespace) -> int:
    for name in ("runs", "text_tokens"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected a number above 0")
    if args.is_continued and args.out is None:
        raise UsageError("--continue goes on with the files in --out; name that folder")
    return _ttft(args) if args.benchmark == "ttft" else _scaling(args)


def _ttft(args: argparse.Namespace) -> int:
    from fastvlm.bench import ttft
    from fastvlm.runtimes import default_threads

    if args.max_new_tokens < 2:
        raise UsageError(f"--max-new-tokens is {args.max_new_tokens}; the time of a token needs at least two")
    model = str(_random(args.random, args.cache)) if args.random else args.model
    peers: list[str] = []
    if args.peers is not None:
        every = sorted(list_plugins(PEERS), key=lambda name: LAST.index(name) if name in LAST else -1)
        peers = every if not args.peers or "all" in args.peers else args.peers
    names = ("runtime", "dtype", "device", "revision", "adapter", "image_mode")
    options = ttft.Options(
        model=model,
        threads=args.threads or default_threads(),
        random=args.random,
        load_options={name: value for name in names if (value := getattr(args, name)) is not None},
        image=args.image,
        resolution=args.resolution,
        text_tokens=args.text_tokens,
        max_new_tokens=args.max_new_tokens,
        runs=args.runs,
        phases=tuple(args.phases),
        peers=tuple(peers),
        hardware=not args.no_hardware,
        operators=args.operators,
    )
    files = _Files(args, f"ttft-{args.random or 'model'}", ttft.render)
    result = ttft.measure(options, _say, files.earlier(), files.write)
    failed = [peer for peer in result.get("peers", []) if "failed" in peer]
    _print(ttft.render(result), result)
    return 1 if failed else 0


def _scaling(args: argparse.Namespace) -> int:
    from fastvlm.bench import scaling
    from fastvlm.runtimes import default_threads

    if wrong := [side for side in args.onevision if side < 384 or side % 384 or side > 6 * 384]:
        raise UsageError(f"--onevision has {wrong[0]}; expected multiples of 384 up to 2304")
    models = {size: str(_random(size, args.cache)) for size in args.sizes}
    files = _Files(args, "scaling", scaling.render)
    result = scaling.measure(
        models,
        resolutions=args.resolutions,
        onevision=args.onevision,
        threads=args.threads or default_threads(),
        runs=args.runs,
        text_tokens=args.text_tokens,
        load_options={"runtime": args.runtime, "dtype": args.dtype},
        say=_say,
        result=files.earlier(),
        save=files.write,
    )
    _print(scaling.render(result), result)
    if files.stem is not None:
        scaling.plot(result, files.stem.with_name(f"{files.stem.name}.png"))
    return 1 if result["not_measured"] else 0


def _random(shape: str, cache: Path | None) -> Path:
    from fastvlm.bench.random_checkpoint import random_checkpoint

    folder = None if cache is None else cache / f"random-{shape}"
    return random_checkpoint(shape, folder, on_start=lambda: _say(f"writing random weights in the shape of {shape}"))


class _Files:
    """Where a result is kept while it grows: NAME.json and the tables in NAME.txt. Without --out, nowhere."""

    def __init__(self, args: argparse.Namespace, name: str, render: Callable[[dict[str, Any]], str]):
        self.stem: Path | None = None if args.out is None else args.out / (args.name or name)
        self._is_continued = args.is_continued
        self._render = render

    def earlier(self) -> dict[str, Any] | None:
        if self.stem is None or not self._is_continued or not self._path(".json").is_file():
            return None
        try:
            return json.loads(self._path(".json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self._path('.json')} is no result that --continue could go on with; remove it, or name another") from error

    def write(self, result: dict[str, Any]) -> None:
        if self.stem is None:
            return
        self.stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".txt", self._render(result)), (".json", json.dumps(result, indent=1))):
            temporary = self._path(f"{suffix}.part")  # whole or not at all: a run may be broken off here
            temporary.write_text(text + "\n", encoding="utf-8")
            temporary.replace(self._path(suffix))

    def _path(self, suffix: str) -> Path:
        assert self.stem is not None
        return self.stem.with_name(self.stem.name + suffix)


def _print(tables: str, result: dict[str, Any]) -> None:
    print(tables)
    print(json.dumps(result))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
