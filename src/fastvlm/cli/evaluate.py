"""`fastvlm evaluate MODEL --task T`: score a model, with confidence intervals."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fastvlm.cli import UsageError
from fastvlm.cli._options import DEFAULT_MODEL, add_model_options
from fastvlm.plugins import list_plugins, load_plugin

HELP = "score a model on a task, with confidence intervals and a page of the worst answers"
TASKS = "fastvlm.evaluate.tasks"


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("named", nargs="?", metavar="MODEL", help="the same as --model")
    add_model_options(parser)
    parser.add_argument("--task", required=True, choices=list_plugins(TASKS), help="what to answer")
    parser.add_argument("--split", help="default: the task's first")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N examples")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="answers decoded at once (default: %(default)s)")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the task; may be repeated")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="results; a stopped run there goes on (default: a folder in out/, named after model, task and split)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON document")


def run(args: argparse.Namespace) -> int:
    from fastvlm.cli._options import load_model
    from fastvlm.evaluate.runner import evaluate

    if args.named is not None:
        if args.model != DEFAULT_MODEL:
            raise UsageError(f"two models are named, {args.named} and {args.model}; one is scored at a time")
        args.model = args.named
    task = load_plugin(TASKS, args.task)
    split = args.split or task.SPLITS[0]
    out = args.out or Path("out", "-".join([*(_label(name) for name in (args.model, args.adapter) if name), args.task, split]))
    options = dict(option.partition("=")[::2] for option in args.option)
    vlm = load_model(args)

    def generate_batch(conversations: Any) -> list[str]:
        results = vlm.generate_batch(conversations, batch_size=args.batch_size, max_new_tokens=task.MAX_NEW_TOKENS)
        return [result.text for result in results]

    names = "model revision adapter runtime dtype resolution image_mode".split()
    summary = evaluate(
        generate_batch, task, out, split=split, limit=args.limit, batch_size=args.batch_size, options=options,
        model={**{name: getattr(args, name) for name in names}, "content_sha256": _content_sha256(args)},
    )  # fmt: skip
    if args.json:
        print(json.dumps(summary))
    else:
        _print(summary)
    print(f"every answer and the worst of them with their pictures: {out / 'worst.html'}", file=sys.stderr)
    if summary["errors"]:
        print(f"{summary['errors']} questions could not be answered and count as wrong; examples.jsonl says why", file=sys.stderr)
    return 1 if summary["errors"] else 0


def _label(model: str) -> str:
    """Of a folder's or hub id's name its last two parts: "model" alone is what most folders are called."""
    return "-".join(part for part in Path(model).parts[-2:] if part not in ("/", ".", ".."))


def _content_sha256(args: argparse.Namespace) -> str:
    """Of what answers: results of a model that was trained on since are not gone on from."""
    from fastvlm.bundle import Bundle, cache, is_bundle
    from fastvlm.checkpoint import open_checkpoint

    if is_bundle(path := Path(args.model).expanduser()):
        return str(Bundle.open(path).manifest.source["content_sha256"])
    return cache.content_hash(open_checkpoint(args.model, revision=args.revision), args.adapter)


def _print(summary: dict[str, Any]) -> None:
    print(f"{summary['examples']} questions, split {summary['split']}; mean and 95 % interval")
    for metric, result in summary["metrics"].items():
        print(f"{metric:<20} {_line(result)}")
        for group, values in result["groups"].items():
            for value, scores in values.items():
                print(f"  {group + ' ' + value:<18} {_line(scores)}")


def _line(result: dict[str, Any]) -> str:
    low, high = result["interval"]
    return f"{result['mean']:.3f}  [{low:.3f}, {high:.3f}]  n={result['count']}"
