"""Checkpoints: transformers' `fast_vlm` layout (ours), Apple's `llava_qwen2`, towers alone, GGUF language models; fetching and saving.

    checkpoint = open_checkpoint("apple/FastVLM-0.5B")          # a folder, a zip, a hub id, `nano`, or a short name that was pulled
    print(checkpoint.describe())
    model = checkpoint.load_model(dtype="float32")
    save_pretrained(checkpoint, checkpoint.processor(), "fastvlm-0.5b")

Only safetensors are read: no pickle, no code that a checkpoint brings along. Nothing is written into a checkpoint's folder.
"""

from fastvlm.checkpoint.checkpoint import Checkpoint, StoredTensor
from fastvlm.checkpoint.errors import CheckpointError
from fastvlm.checkpoint.open import open_checkpoint
from fastvlm.checkpoint.save import save_pretrained
from fastvlm.checkpoint.tower import load_tower

__all__ = ["Checkpoint", "CheckpointError", "StoredTensor", "load_tower", "open_checkpoint", "save_pretrained"]
