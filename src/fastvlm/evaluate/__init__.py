"""Scoring a model on task files: `fastvlm evaluate MODEL --task documents`. Needs the extra `eval`."""
