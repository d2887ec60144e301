"""Where a model errs when it reads aloud, each byte told those before: python training/nano/by_place.py nano 4

Of so many documents for validation of each kind, 768 pixels wide: the share of bytes that the model puts first, by what they are.
"""

import collections
import sys
from collections.abc import Iterator

import numpy as np

import fastvlm
from fastvlm.data import documents, heldout

FIRST_SEED = 100
SIDE = 768


def places(text: str) -> Iterator[str]:
    """What each byte of a text is."""
    before, line = "\n", 0
    for letter in text:
        if letter == "\n":
            what = "end of line"
        elif before == "\n":
            what = f"first of line {min(line, 9)}"
        elif letter == " ":
            what = "space"
        else:
            what = "first of word" if before == " " else "rest of word"
        line += letter == "\n"
        before = letter
        yield from [what] * len(letter.encode())


def main(model: str, count: int) -> None:
    vlm = fastvlm.load(model, runtime="torch", dtype="float32")
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        for kind in heldout.KINDS:
            document = documents.generate(seed, split="val", kind=kind, width=SIDE, height=SIDE)
            qa = next(qa for qa in document.qa if qa.kind == "transcription")
            content = [{"type": "image", "image": document.image}, {"type": "text", "text": qa.question}]
            inputs = vlm.processor.training_inputs([{"role": "user", "content": content}, {"role": "assistant", "content": qa.answer}])
            is_right = vlm.logits(inputs)[0, :-1].argmax(-1) == inputs.input_ids[0, 1:]
            said = np.flatnonzero(inputs.loss_mask[0, 1:])
            for position, what in zip(said, places(qa.answer), strict=False):
                for name in ("all", f"kind {kind}", what):
                    right[name].append(bool(is_right[position]))
    for name in sorted(right):
        print(f"{name:20} {np.mean(right[name]):.3f}  of {len(right[name])}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__.split("\n", 1)[0])
    main(sys.argv[1], int(sys.argv[2]))
