"""`fastvlm train RECIPE.yaml`."""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

HELP = "train a model in stages from a recipe"


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="YAML file; see recipes/")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the run; an unfinished run there goes on (default: one in runs/, named like the recipe)",
    )
    parser.add_argument(
        "--dry-run", action="store_true",
        help="train nothing: show the first samples of each stage and what is learnt, put their pictures into DIR, estimate the cost",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="changes",
        help="change the recipe, such as model=0.5b or stages.0.samples=600; may be repeated",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that train together (default: %(default)s)")
    parser.add_argument("--sharded", action="store_true", help="split weights and optimizer over the processes (FSDP)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="that make batches, a process (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="of a process (default: the cores, divided by the processes)")
    parser.add_argument("--save-every", type=float, default=300.0, metavar="S", dest="save_every_s", help="seconds (default: %(default)s)")
    parser.add_argument("--log-every", type=int, default=20, metavar="N", help="batches (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from fastvlm.train.distributed import is_worker, launch

    args.out = args.out or Path("runs", args.recipe.stem)
    if args.dry_run:
        return _dry_run(args)
    if args.processes > 1 and not is_worker():
        return launch(args.processes, sys.argv[1:])
    import torch

    from fastvlm.train.loop import RunOptions
    from fastvlm.train.recipe import load_recipe
    from fastvlm.train.run import run as train

    is_main = int(os.environ.get("RANK", 0)) == 0
    logging.getLogger("fastvlm").setLevel(logging.INFO if is_main else logging.WARNING)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with Ctrl-C ignored
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill saves the state, as Ctrl-C does
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # before there are threads, which inherit it: probabilities near 0 made float32 steps 1.6 times as long
    options = RunOptions(
        workers=args.workers, save_every_s=args.save_every_s, log_every=args.log_every, sharded=args.sharded, quiet=not is_main
    )
    train(load_recipe(args.recipe, args.changes), args.out, options)
    return 0


def _dry_run(args: argparse.Namespace) -> int:
    import torch

    from fastvlm.train.recipe import load_recipe
    from fastvlm.train.run import dry_run

    if args.threads:
        torch.set_num_threads(args.threads)
    for line in dry_run(load_recipe(args.recipe, args.changes), args.out, processes=args.processes):
        print(line, flush=True)
    return 0
