"""What all tests share: no network, a torchvision that imports, and the parity checkpoint."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch

# timm and transformers import torchvision, of which nothing that needs its binary operators is used here. Beside a torch from another
# index those operators do not load, and declaring their fake versions fails unless the names exist.
_torchvision = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _torchvision.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


PARITY = Path(__file__).parent / "data/parity"


@pytest.fixture(scope="session")
def parity_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in Apple's layout (290 MB, written once a run): the weights that tests/data/parity/small_tied was computed with."""
    spec = importlib.util.spec_from_file_location("make_checkpoint", PARITY / "make_checkpoint.py")
    assert spec is not None and spec.loader is not None
    make_checkpoint = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_checkpoint)
    folder = tmp_path_factory.mktemp("parity") / "small_tied"
    make_checkpoint.main("small_tied", str(folder))
    yield folder
    shutil.rmtree(folder)  # pytest would keep it for three runs
