"""Bring the activations of a checkpoint of nano back to size: python training/nano/rescale.py THAT_CHECKPOINT runs/rescaled

Without weight decay enough, Muon lets the tower's last stage come to an rms of 2,400, to which its blocks add 70, and the projected tokens
to 90,000, to which a layer of the decoder adds 10: neither can change anything any more. The stream is multiplied by `STREAM`, its
blocks' branches by `BRANCHES`, so that they weigh twice as much in it, and the gates and the projector so that tokens leave with an rms of
about 30. The decoder then reads less well (68 -> 59 % of the bytes of whole documents) and has to be trained on, with `feature_rms` and a
decay of 0.1.
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

STREAM = 0.01
BRANCHES = 0.02
TOWER = "model.vision_tower.timm_model."
PROJECTOR = "model.multi_modal_projector."
FACTORS = {
    TOWER + "stages.4.downsample.proj.1.reparam_conv.weight": STREAM,
    TOWER + "stages.4.downsample.proj.1.reparam_conv.bias": STREAM,
    TOWER + "stages.4.pos_emb.reparam_conv.bias": STREAM,
    **{TOWER + f"stages.4.blocks.{block}.mlp.conv.bn.running_mean": STREAM for block in range(3)},
    **{TOWER + f"stages.4.blocks.{block}.mlp.conv.bn.running_var": STREAM**2 for block in range(3)},
    **{TOWER + f"stages.4.blocks.{block}.layer_scale_{branch}.gamma": BRANCHES for block in range(3) for branch in (1, 2)},
    TOWER + "final_conv.reparam_conv.bias": STREAM,
    # gates that were wide open or shut come back to where they can move
    TOWER + "final_conv.se.fc1.weight": 0.05,
    TOWER + "final_conv.se.fc1.bias": 0.05 * STREAM,
    TOWER + "final_conv.se.fc2.weight": 0.06,
    TOWER + "final_conv.se.fc2.bias": 0.003 * STREAM,
    PROJECTOR + "linear_1.weight": 0.2,
    PROJECTOR + "linear_1.bias": 0.2 * STREAM,
    PROJECTOR + "linear_2.weight": 0.15,
    PROJECTOR + "linear_2.bias": 0.03 * STREAM,
}


def main(source: Path, target: Path) -> None:
    weights = load_file(source / "model.safetensors")
    if missing := FACTORS.keys() - weights.keys():
        raise SystemExit(f"{source} is not a checkpoint of nano: it has no {min(missing)}")
    for name, factor in FACTORS.items():
        weights[name] = (weights[name].to(torch.float32) * factor).to(weights[name].dtype)
    shutil.copytree(source, target)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__.split("\n", 1)[0])
    main(Path(sys.argv[1]), Path(sys.argv[2]))
