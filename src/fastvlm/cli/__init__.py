"""The command `fastvlm`: one file a command, found by its name and imported when it is chosen.

A command's file defines `HELP` (one line), `register(parser)` and `run(args) -> int` (the exit status), and imports what is heavy inside
`run`, so that `fastvlm --help` stays quick. Exit status: 0, 1 (failed), 2 (wrong use), 130 (interrupted).
"""

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from fastvlm import __version__
from fastvlm.plugins import list_plugins, load_plugin


class UsageError(Exception):
    """The arguments do not fit together: printed with the command's usage, exit status 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; errors become one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except SystemExit as exit_:  # argparse, after --help or wrong use
        return exit_.code if isinstance(exit_.code, int) else 1
    except BrokenPipeError:
        # Whoever read our output has left (`| head`). Python flushes stdout once more on its way out: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, what a shell reports for a tool that is stopped so
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    names = {name.replace("_", "-"): name for name in list_plugins(__name__)}
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="fastvlm",
        description="Ask high-resolution pictures questions.",
        epilog="`fastvlm COMMAND --help` explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastvlm {__version__}")
    _add_debug(parser, default=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    command: Any = None
    command_parser = parser
    for shown, name in names.items():
        if chosen in names and shown != chosen:
            continue
        module = load_plugin(__name__, name)
        subparser = commands.add_parser(shown, help=module.HELP, description=_sentence(module.HELP), allow_abbrev=False)
        if shown == chosen:
            command, command_parser = module, subparser
            module.register(subparser)
            _add_debug(subparser, default=argparse.SUPPRESS)
    args = parser.parse_args(arguments)

    from fastvlm import telemetry

    telemetry.disable()
    logging.basicConfig(level=logging.WARNING, format="fastvlm: %(message)s")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return command.run(args)
    except UsageError as error:
        command_parser.error(_one_line(error))
    except (KeyboardInterrupt, BrokenPipeError):
        if args.debug:
            traceback.print_exc()
        raise
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(f"fastvlm: error: {_describe(error, arguments)}", file=sys.stderr)
        return 1


def _add_debug(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    print(f"fastvlm: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _describe(error: Exception, arguments: list[str]) -> str:
    """One line about `error`. Expected kinds speak for themselves; others are marked as ours to mend."""
    if isinstance(error, OSError) and error.strerror is not None:
        # A path that the user did not name (a cache, our own files) is nobody's business in a log.
        path = "" if error.filename is None else os.fspath(error.filename)
        path = path.decode(errors="replace") if isinstance(path, bytes) else str(path)
        is_named = path and any(argument.split("=")[-1] and path.startswith(argument.split("=")[-1]) for argument in arguments)
        return f"{error.strerror}: {path}" if is_named else error.strerror
    if isinstance(error, (ValueError, OSError)) and str(error):
        return _one_line(error)
    if isinstance(error, MemoryError):
        return "not enough memory" + (f": {_one_line(error)}" if str(error) else "")
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the package {error.name.split('.')[0]!r} is needed for this and not installed"
    detail = _one_line(error)
    return f"unexpected {type(error).__name__}{': ' if detail else ''}{detail} (--debug shows the traceback)"
