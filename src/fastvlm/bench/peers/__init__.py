"""Peers: other programs on the same or on comparable work, one file each, found by its name.

A file defines

    TITLE           one line
    PART            "whole" (picture and text to the first token) or "decoder" (the language model alone)
    INSTALL         the command that installs what it needs
    RUNS            most measured runs, or None; for what takes a minute each
    RESOLUTION      only where it sees a smaller picture: the side in pixels at which ours is run beside it
    unavailable_reason() -> str | None          what is missing here
    variants(work) -> list[str]                 ways to run it, all measured
    load(work, variant) -> program              see fastvlm.bench.contestant

A program's `run()` returns `ttft_s` and, where they exist, `encode_s`, `prefill_s`, `per_token_s`. `facts` says on what it worked: token
counts, shapes, parameters, and `note` where something is not as it would be. A program that did other work than was asked raises
`fastvlm.bench.work.WorkError`.
"""
