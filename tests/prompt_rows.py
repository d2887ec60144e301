"""Prompts of ids and image features, as runtimes take them: what the tests of every runtime read."""

import numpy as np


def make_prompt(length: int, images: int, seed: int, image_token_id: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Random ids with `images` runs of 4 placeholders, and as many random features."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, image_token_id, length)
    for i in range(images):
        ids[2 + 6 * i : 6 + 6 * i] = image_token_id
    return ids, rng.standard_normal((4 * images, 32)).astype(np.float32) if images else None


def make_rows(image_token_id: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Four prompts of unequal length, with two pictures, one, and none."""
    return [make_prompt(*case, image_token_id) for case in ((9, 1, 1), (17, 2, 2), (1, 0, 3), (12, 0, 4))]
