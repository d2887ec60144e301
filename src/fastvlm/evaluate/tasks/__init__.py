"""One file a task, found by its name.

Each defines `HELP` (one line), `SPLITS` (the default first), `MAX_NEW_TOKENS`, and `examples(split, options)`, which streams `Example`s.
"""
