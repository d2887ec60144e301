"""`fastvlm grounding --model M`: how much of a model's knowledge of the answers comes from the pictures."""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvlm.cli._options import add_model_options
from fastvlm.plugins import list_plugins, load_plugin

HELP = "measure how much a model uses its pictures: its loss with the right ones against shuffled ones"
TASKS = "fastvlm.evaluate.tasks"


def register(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--task", choices=list_plugins(TASKS), help="questions and answers of an evaluation task")
    source.add_argument("--llava", type=Path, metavar="FILE", help="your own conversations, LLaVA's JSON or JSONL; the last answer counts")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures of --llava (default: the file's)")
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
    examples = _llava(args.llava, args.images) if args.llava else _task(args)
    result = grounding(load_model(args), itertools.islice(examples, args.limit), seed=args.seed)
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{result['pictures']} pictures, {result['examples']} answers, {result['tokens']} tokens; loss in nats a token, 95 % interval")
    print(f"right pictures     {result['loss_right']:.4f}")
    print(f"shuffled pictures  {result['loss_shuffled']:.4f}")
    low, high = result["interval"]
    print(f"reduction          {result['reduction']:.1%}  [{low:.1%}, {high:.1%}]")
    return 0


def _task(args: argparse.Namespace) -> Iterator[Any]:
    task = load_plugin(TASKS, args.task)
    split = task.SPLITS[0] if args.split is None else args.split
    if split not in task.SPLITS:
        raise ValueError(f"unknown split {split!r}; available: {', '.join(task.SPLITS)}")
    examples: Iterator[Any] = task.examples(split, dict(option.partition("=")[::2] for option in args.option))
    return examples


def _llava(path: Path, images: Path | None) -> Iterator[Any]:
    from fastvlm.evaluate.runner import Example
    from fastvlm.train.sources import BrokenSample, read_json_record
    from fastvlm.train.sources._records import record_messages
    from fastvlm.train.sources.llava import entry_spans

    with path.open("rb") as file:
        for index, (start, end) in enumerate(entry_spans(path)):
            file.seek(start)
            try:
                messages = record_messages(read_json_record(file.read(end - start)), images=images or path.parent)
            except BrokenSample as error:
                raise ValueError(f"{path.name}[{index}]: {error}") from None
            yield Example(str(index), messages[:-1], [messages[-1]["content"]], "exact_match")
