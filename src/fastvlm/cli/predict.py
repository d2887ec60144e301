"""`fastvlm predict --image F --prompt P`: one question, the answer streamed to stdout."""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.cli import UsageError
from fastvlm.cli._options import (
    add_generation_options,
    add_model_options,
    check_conversation_mode,
    generation_options,
    load_model,
    text_message,
)

if TYPE_CHECKING:
    from fastvlm.generate import GenerationResult
    from fastvlm.vlm import FastVLM

HELP = "ask a question about pictures; the answer streams to the terminal"


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image", "--image-file", action="append", default=[], metavar="FILE",
        help="a picture, - for standard input; repeat it for several, leave it out for none",
    )  # fmt: skip
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the question, - for standard input")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt in place of the model's own")
    parser.add_argument("--json", action="store_true", help="print one JSON document with the answer, token counts and timings")
    parser.add_argument("--stats", action="store_true", help="print token counts and timings to stderr")
    add_model_options(parser)
    add_generation_options(parser)


def run(args: argparse.Namespace) -> int:
    check_conversation_mode(args)
    if (args.prompt == "-") + args.image.count("-") > 1:
        raise UsageError("standard input can be read once: give - for one picture or for the prompt, not for several")
    start = time.perf_counter()
    options = generation_options(args)  # before the model is loaded: a wrong value should not cost that time
    messages = _messages(args)
    vlm = load_model(args)
    load_s = time.perf_counter() - start

    stream = vlm.stream(messages, **dataclasses.asdict(options))
    for piece in stream:
        if not args.json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    result = stream.result
    if args.json:
        print(json.dumps(_document(args, vlm, result, load_s), ensure_ascii=False))
    else:
        print()
    if args.stats:
        _print_stats(vlm, result, load_s)
    return 0


def _messages(args: argparse.Namespace) -> list[dict[str, Any]]:
    prompt = args.prompt
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", errors="replace").removesuffix("\n")
    images = [sys.stdin.buffer.read() if image == "-" else image for image in args.image]
    if any(image == b"" for image in images):
        raise ValueError("standard input is empty; expected the bytes of a picture")
    for image in images:
        if isinstance(image, str) and not Path(image).is_file():
            from fastvlm.image_io import load_image

            load_image(image)  # says what is wrong, before the time that loading a model takes
    question = text_message("user", prompt)
    question["content"] = [{"type": "image", "image": image} for image in images] + question["content"]
    return [question] if args.system is None else [text_message("system", args.system), question]


def _document(args: argparse.Namespace, vlm: "FastVLM", result: "GenerationResult", load_s: float) -> dict[str, Any]:
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "token_ids": result.token_ids,
        "model": args.model,
        "runtime": vlm.runtime.name,
        "timings": {"load_s": load_s, **dataclasses.asdict(result.timings)},
    }


def _print_stats(vlm: "FastVLM", result: "GenerationResult", load_s: float) -> None:
    timings = result.timings
    speed = f"{1 / timings.per_token_s:.1f} tokens/s" if timings.per_token_s else ""
    rows = [
        ("load", f"{load_s:.3f} s", vlm.runtime.name),
        ("preprocess", f"{timings.preprocess_s:.3f} s", ""),
        ("encode", f"{timings.encode_s:.3f} s", f"{timings.image_tokens} image tokens"),
        ("prefill", f"{timings.prefill_s:.3f} s", f"{timings.prompt_tokens} tokens, {timings.cached_tokens} of them cached"),
        ("first token", f"{timings.ttft_s:.3f} s", "after loading"),
        ("decode", f"{timings.decode_s:.3f} s", f"{timings.completion_tokens} tokens in all"),
        ("per token", f"{1000 * timings.per_token_s:.1f} ms", speed),
        ("ended by", result.finish_reason, ""),
    ]
    for name, value, note in rows:
        print(f"{name:<12} {value:>10}  {note}".rstrip(), file=sys.stderr)
