"""`fastvlm chat`: a conversation about pictures in the terminal, or over a pipe, a line a turn."""

import argparse
import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastvlm.cli._options import (
    add_generation_options,
    add_model_options,
    check_conversation_mode,
    generation_options,
    load_model,
    text_message,
)

if TYPE_CHECKING:
    from fastvlm.generate import GenerationOptions
    from fastvlm.vlm import FastVLM

HELP = "talk about pictures in the terminal"

COMMANDS = """\
/image PATH   show a picture with your next message; repeat it for several
/system TEXT  set the system prompt and begin anew; without TEXT, the model's own
/reset        forget the conversation
/help         this list
/exit         leave (Ctrl-D does too; Ctrl-C stops an answer)"""


def register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image", "--image-file", action="append", default=[], metavar="FILE", help="a picture to begin with; may be repeated"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system prompt in place of the model's own")
    add_model_options(parser)
    add_generation_options(parser)


def run(args: argparse.Namespace) -> int:
    check_conversation_mode(args)
    options = generation_options(args)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):  # not on Windows, where the console edits lines itself
            import readline  # noqa: F401 - line editing and history in memory; nothing is written to disk
    vlm = load_model(args)
    conversation = Conversation(vlm, options, args.system)
    for path in args.image:
        conversation.add_image(path)
    if is_terminal:
        print("Ask about a picture: /image PATH, then your question. /help lists the commands.")
    for line in _lines(is_terminal):
        if not line.strip():
            continue
        if line.startswith("/"):
            name, _, argument = line.strip().partition(" ")
            if name in ("/exit", "/quit"):
                break
            _command(conversation, name, argument.strip())
        else:
            conversation.ask(line)
    return 0


class Conversation:
    """The turns so far and the pictures that wait for the next one."""

    def __init__(self, vlm: "FastVLM", options: "GenerationOptions", system: str | None):
        self._vlm = vlm
        self._options = options
        self.set_system(system)

    def set_system(self, system: str | None) -> None:
        self._system = system
        self.reset()

    def reset(self) -> None:
        self._messages: list[dict[str, Any]] = [] if self._system is None else [text_message("system", self._system)]
        self._images: list[Any] = []

    def add_image(self, path: str) -> tuple[int, int]:
        """Open a picture now, so that a wrong path is told now; returns its width and height."""
        from fastvlm.image_io import load_image

        image = load_image(path)
        self._images.append(image)
        return image.size

    def ask(self, text: str) -> None:
        """Print the answer as it comes. A question that cannot be answered is taken back."""
        question = text_message("user", text)
        question["content"] = [{"type": "image", "image": image} for image in self._images] + question["content"]
        pieces: list[str] = []
        try:
            stream = self._vlm.stream([*self._messages, question], **dataclasses.asdict(self._options))
            with _stop_on_interrupt() as is_interrupted:
                for piece in stream:
                    pieces.append(piece)
                    sys.stdout.write(piece)
                    sys.stdout.flush()
                    if is_interrupted():
                        stream.close()
        except (ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            if str(error).startswith("the prompt has"):  # too many tokens, as the processor or the context counts them
                print("/reset begins a new conversation", file=sys.stderr)
            return
        print(flush=True)
        self._images = []
        self._messages += [question, text_message("assistant", "".join(pieces))]


def _command(conversation: Conversation, name: str, argument: str) -> None:
    if name == "/image" and argument:
        path = argument[1:-1] if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "'\"" else argument
        try:
            width, height = conversation.add_image(path)
        except (ValueError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        else:
            print(f"{width} x {height} pixels, shown with your next message", file=sys.stderr)
    elif name == "/system":
        conversation.set_system(argument or None)
    elif name == "/reset":
        conversation.reset()
    elif name == "/help":
        print(COMMANDS)
    else:
        print(f"error: {name} {'needs a path' if name == '/image' else 'is no command'}; /help lists them", file=sys.stderr)


def _lines(is_terminal: bool) -> Iterator[str]:
    """What the user types, without the line's end, until the end of input."""
    while True:
        try:
            yield input("> " if is_terminal else "")
        except EOFError:
            if is_terminal:
                print()
            return
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print("\n(Ctrl-D or /exit leaves)")


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[Any]:
    """Within it the first Ctrl-C is only noted, for the loop to end at the next piece; a second one interrupts."""
    interrupts = 0

    def note(signum: int, frame: Any) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread, where signals do not arrive anyway
        yield lambda: False
        return
    try:
        yield lambda: interrupts > 0
    finally:
        signal.signal(signal.SIGINT, previous)
