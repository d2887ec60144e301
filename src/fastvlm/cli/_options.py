"""Options that several commands share: which model, how to run it, how to answer."""

import argparse
from typing import TYPE_CHECKING, Any

from fastvlm.cli import UsageError
from fastvlm.config import PATCH_SIZE
from fastvlm.plugins import list_plugins

if TYPE_CHECKING:
    from fastvlm.generate import GenerationOptions
    from fastvlm.vlm import FastVLM

DEFAULT_MODEL = "nano"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", "--model-path", default=DEFAULT_MODEL, metavar="M",
        help="a checkpoint's folder or zip, a hub id such as apple/FastVLM-0.5B, or a short name (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    group.add_argument("--adapter", metavar="DIR", help="a LoRA adapter (peft's folder) to apply to the model")
    group.add_argument(
        "--runtime", choices=["auto", *list_plugins("fastvlm.runtimes")], default="auto", help="what computes (default: auto)"
    )
    group.add_argument("--device", default="auto", metavar="DEV", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument("--dtype", default="auto", metavar="TYPE", help="auto, float32, bfloat16, float16, ... (default: auto)")
    group.add_argument(
        "--threads", type=_positive_int, metavar="N", help="CPU threads (default: physical cores within the container's limit)"
    )
    group.add_argument(
        "--resolution", type=side_px, metavar="PX",
        help="side that pictures are brought to, a multiple of 64; a picture costs (PX / 64)^2 tokens (default: the checkpoint's)",
    )  # fmt: skip
    group.add_argument(
        "--image-mode", choices=["pad", "crop", "anyres", "native"],
        help="how a picture that is not square is brought to size (default: the checkpoint's)",
    )  # fmt: skip
    group.add_argument(
        "--draft", action="store_true", default=None, help="decode large JPEGs at a fraction of their size: faster, pixels differ a little"
    )


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """The names of `fastvlm.generate.GenerationOptions`; Apple's spellings, with underscores, are accepted too."""
    group = parser.add_argument_group("answer")
    group.add_argument("--max-new-tokens", "--max_new_tokens", type=_positive_int, default=256, metavar="N", help="default: %(default)s")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the most probable token (default: %(default)s)")
    group.add_argument("--top-p", "--top_p", type=float, metavar="P", help="draw among the fewest tokens of this probability together")
    group.add_argument("--top-k", "--top_k", type=int, metavar="K", help="draw among the K most probable tokens")
    group.add_argument(
        "--repetition-penalty", "--repetition_penalty", type=float, default=1.0, metavar="R", help="1 is off (default: %(default)s)"
    )
    group.add_argument(
        "--no-repeat-ngram-size", "--no_repeat_ngram_size", type=int, metavar="N",
        help="never say N tokens in a row again; 0 is off (default: the checkpoint's generation_config.json)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, metavar="N", help="makes draws repeatable")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end the answer before this text; may be repeated")
    group.add_argument("--num-beams", "--num_beams", type=_positive_int, default=1, metavar="N", help="beam search (default: %(default)s)")
    group.add_argument("--length-penalty", "--length_penalty", type=float, default=1.0, metavar="X", help="of beams (default: %(default)s)")
    group.add_argument("--conv-mode", "--conv_mode", metavar="NAME", help=argparse.SUPPRESS)  # of Apple's predict.py


def check_conversation_mode(args: argparse.Namespace) -> None:
    """Apple's command chooses the chat template by this flag; here the checkpoint does, so only the released models' name is right."""
    if args.conv_mode not in (None, "qwen_2"):
        raise UsageError(
            f"--conv-mode is {args.conv_mode!r}, but the prompt's form comes from the checkpoint; leave the flag out, or give qwen_2"
        )


def load_model(args: argparse.Namespace) -> "FastVLM":
    from fastvlm.vlm import load

    return load(
        args.model,
        runtime=args.runtime,
        dtype=args.dtype,
        device=args.device,
        revision=args.revision,
        threads=args.threads,
        adapter=args.adapter,
        resolution=args.resolution,
        image_mode=args.image_mode,
        draft=args.draft,
    )


def generation_options(args: argparse.Namespace) -> "GenerationOptions":
    from fastvlm.generate import GenerationOptions

    names = "max_new_tokens temperature top_p top_k repetition_penalty no_repeat_ngram_size seed stop num_beams length_penalty"
    try:
        return GenerationOptions(**{name: getattr(args, name) for name in names.split()})
    except ValueError as error:
        raise UsageError(str(error)) from error


def text_message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def side_px(text: str) -> int:
    if not text.isdecimal() or int(text) < 1 or int(text) % PATCH_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is no multiple of {PATCH_SIZE}")
    return int(text)


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
