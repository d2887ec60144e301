"""`fastvlm convert MODEL --out DIR`: a bundle that is run without torch."""

import argparse
import json
import sys
import time
from pathlib import Path

from fastvlm.plugins import list_plugins

HELP = "make a bundle: a checkpoint made ready for one runtime, that runs without torch"


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="as for predict --model")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="DIR", help="folder to make; must not exist or be empty")
    target.add_argument(
        "--into-cache", action="store_true", help="into the cache, where predict, chat and load() find it; prints one JSON document"
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter (peft's folder) to merge")
    parser.add_argument("--runtime", choices=list_plugins("fastvlm.convert"), default="openvino", help="default: %(default)s")
    parser.add_argument(
        "--precision", choices=["auto", "int8", "int4", "bf16", "fp32"], default="auto",
        help="auto is the fastest that passes the accuracy guard (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="pictures like yours, to quantise with (default: documents made here)"
    )
    parser.add_argument(
        "--score-questions", type=int, metavar="N", help="questions of the guard's score (default: 200 for small models, 0 else)"
    )
    parser.add_argument("--random-weights", action="store_true", help="the weights are random, for measuring speed: no guard")
    parser.add_argument("--force", action="store_true", help="keep the bundle also if the accuracy guard refuses it")


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    try:
        from fastvlm.checkpoint import open_checkpoint
        from fastvlm.checkpoint.errors import gigabytes
        from fastvlm.checkpoint.memory import peak_memory_bytes
        from fastvlm.runtimes import is_installed

        if not is_installed("torch"):
            raise ValueError('converting needs PyTorch: pip install "fastvlm[torch]"')
        from fastvlm.convert import convert, convert_into_cache

        options = dict(
            runtime=args.runtime, precision=args.precision, calibration=args.calibration, adapter=args.adapter,
            random_weights=args.random_weights, force=args.force, questions=args.score_questions,
        )  # fmt: skip
        checkpoint = open_checkpoint(args.model, revision=args.revision)
        if not args.into_cache:
            if checkpoint.license_name:
                print(f"the weights stay under their licence: {checkpoint.license_name}", file=sys.stderr)
            bundle = convert(checkpoint, args.out, **options)
            peak = peak_memory_bytes()
            used = "" if peak is None else f", with at most {gigabytes(peak)} of memory"
            print(f"converted in {time.perf_counter() - start:.0f} s{used}", file=sys.stderr)
            print(bundle.folder)
            return 0
        print(json.dumps({"folder": str(convert_into_cache(checkpoint, **options).folder)}))
        return 0
    except (ValueError, OSError) as error:
        if not args.into_cache:
            raise
        print(json.dumps({"error": " ".join(str(error).split())}))  # `load` waits for this line
        return 1
