"""`fastvlm init --vision FROM --llm FROM --out DIR`: join a vision tower and a language model."""

import argparse
import sys
from pathlib import Path

HELP = "join a vision tower and a language model into a new model, to be trained"


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vision", required=True, metavar="FROM",
        help="a checkpoint, or a tower alone as safetensors (timm's fastvit_mci3: MobileCLIP-S3)",
    )  # fmt: skip
    parser.add_argument(
        "--llm", required=True, metavar="FROM",
        help="a causal language model in transformers' layout, a GGUF file, a checkpoint, or package:NAME for the GGUF in a Python package",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not exist or be empty")
    parser.add_argument(
        "--image-size", type=int, metavar="PX", help="side that pictures are brought to (default: the checkpoint's, 1024 for a tower alone)"
    )
    parser.add_argument(
        "--chat-template", metavar="NAME", help="for a language model without one: qwen_2, vicuna_v1, plain (default: its own)"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the new projector (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from fastvlm.checkpoint import save_pretrained
    from fastvlm.checkpoint.join import join, origin_of

    model, processor = join(args.vision, args.llm, image_size=args.image_size, chat_template=args.chat_template, seed=args.seed)
    folder = save_pretrained(model, processor, args.out, dtype=args.dtype, licenses_from=origin_of(args.vision, args.llm))
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.vision_tower, model.multi_modal_projector)]
    print(f"tower {sizes[0]:.1f} M parameters, new projector {sizes[1]:.1f} M: train it before asking anything", file=sys.stderr)
    print(folder)
    return 0
