"""`fastvlm save MODEL DIR`: any checkpoint in transformers' layout, which this and transformers load; with an adapter merged."""

import argparse
import sys
from pathlib import Path
from typing import Any

HELP = "write a checkpoint in transformers' layout, optionally in another dtype or with an adapter merged"


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="as for predict --model")
    parser.add_argument("out", type=Path, metavar="DIR", help="folder to make; must not exist or be empty")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter (peft's folder) to merge into the weights")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (default: as they are)")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, metavar="GB", help="split larger weights (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from fastvlm.checkpoint import open_checkpoint, save_pretrained
    from fastvlm.cli import UsageError

    if not args.max_shard_gb > 0:
        raise UsageError(f"--max-shard-gb is {args.max_shard_gb}; expected a number above 0")
    checkpoint = open_checkpoint(args.model, revision=args.revision)
    for note in checkpoint.notes:
        print(f"note: {note}", file=sys.stderr)
    source: Any = checkpoint
    dtype = args.dtype
    if args.adapter is not None:
        from fastvlm.runtimes._lora import merge_adapter

        source = checkpoint.load_model(dtype="float32", device="cpu")
        merge_adapter(source, args.adapter)
        dtype = dtype or checkpoint.stored_dtypes[0]
    folder = save_pretrained(
        source, checkpoint.processor(), args.out, dtype=dtype,
        max_shard_bytes=int(args.max_shard_gb * 1_000_000_000), licenses_from=checkpoint,
    )  # fmt: skip
    if checkpoint.license_name:
        print(f"the weights stay under their licence: {checkpoint.license_name}", file=sys.stderr)
    print(folder)
    return 0
