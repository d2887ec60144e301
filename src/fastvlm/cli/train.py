"""`fastvlm train RECIPE.yaml --out DIR`."""

import argparse
import logging
import signal
from pathlib import Path

HELP = "train a model in stages from a recipe"


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="YAML file; see recipes/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an unfinished run there goes on")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="threads of the training step (default: torch's)")
    parser.add_argument("--save-every", type=float, default=300.0, metavar="S", dest="save_every_s", help="seconds between states")


def run(args: argparse.Namespace) -> int:
    import torch

    from fastvlm.train.recipe import load_recipe
    from fastvlm.train.run import run as train

    logging.getLogger("fastvlm").setLevel(logging.INFO)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with Ctrl-C ignored
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill saves the state, as Ctrl-C does
    if args.threads:
        torch.set_num_threads(args.threads)
    train(load_recipe(args.recipe), args.out, workers=args.workers, save_every_s=args.save_every_s)
    return 0
