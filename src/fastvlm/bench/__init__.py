"""Benchmarks: time to first token against peers and against the machine, over resolutions and sizes.

One file a thing: `random_checkpoint` and `work` make what is measured on, `contestant` runs one measured program in a process of its own,
`ours` and `peers/` are the programs, `hardware` and `operations` say what the machine can do and what the model needs, `ttft` and
`scaling` are the two benchmarks.
"""
