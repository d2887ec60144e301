"""`fastvlm grounding --model M`: how much of a model's knowledge of the answers comes from the pictures."""

import argparse
import itertools
import json
from collections.abc import Iterator
from typing import Any

from fastvlm.cli._options import add_model_options
from fastvlm.plugins import list_plugins, load_plugin

HELP = "measure how much a model uses its pictures: its loss with the right ones against shuffled ones"
TASKS = "fastvlm.evaluate.tasks"


def register(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument(
        "--task",
        choices=list_plugins(TASKS),
        required=True,
        help="what to answer; your own: conversations, with --option file=...",
    )
    parser.add_argument("--split", help="of the task (default: its first)")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the task; may be repeated")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the shuffling (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from fastvlm.cli import UsageError
    from fastvlm.cli._options import load_model
    from fastvlm.evaluate.grounding import grounding

    if args.runtime == "auto":
        args.runtime = "torch"  # the one that gives the logits of every position
    if args.runtime != "torch":
        raise UsageError(f"--runtime is {args.runtime!r}; losses need the logits of every position, which only torch gives")
    result = grounding(load_model(args), itertools.islice(_examples(args), args.limit), seed=args.seed)
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{result['pictures']} pictures, {result['examples']} answers, {result['tokens']} tokens; loss in nats a token, 95 % interval")
    print(f"right pictures     {result['loss_right']:.4f}")
    print(f"shuffled pictures  {result['loss_shuffled']:.4f}")
    low, high = result["interval"]
    print(f"reduction          {result['reduction']:.1%}  [{low:.1%}, {high:.1%}]")
    return 0


def _examples(args: argparse.Namespace) -> Iterator[Any]:
    task = load_plugin(TASKS, args.task)
    split = task.SPLITS[0] if args.split is None else args.split
    if split not in task.SPLITS:
        raise ValueError(f"unknown split {split!r}; available: {', '.join(task.SPLITS)}")
    examples: Iterator[Any] = task.examples(split, dict(option.partition("=")[::2] for option in args.option))
    return examples
