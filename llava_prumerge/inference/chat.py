"""Ask a model in the terminal: several turns, several images, answers word by word.

    python -m llava_prumerge.inference.chat MODEL [IMAGE...] [--reduction METHOD] [--load 4bit|8bit] [--new-tokens 512]
        [--device cuda] [--dtype auto] [--template NAME] [--plugin MODULE|FILE.py] [key=value ...]

Each line is a question. Lines that begin with a slash are commands: /image PATH puts a picture before the next question,
/new forgets everything, /help lists them, /exit or the end of the input (Ctrl-D) ends. Ctrl-C ends an answer. After each
answer a line on the error stream tells how many visual tokens were kept and how long the first token took.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_prumerge.ground.command import Parser, at_least, command, one_line
from llava_prumerge.ground.errors import CannotGoOn, InputError
from llava_prumerge.ground.naming import not_known
from llava_prumerge.methods.plugins import add_plugin_option
from llava_prumerge.methods.resolve import read_settings, resolve, stored_reduction

if TYPE_CHECKING:
    from llava_prumerge.inference.asking import Answer
    from llava_prumerge.inference.talking import Conversation

COMMANDS = {
    "/image": "/image PATH   put a picture before the next question; several are shown in this order",
    "/new": "/new          forget all turns and pictures",
    "/help": "/help         these lines",
    "/exit": "/exit         end (so does Ctrl-D); Ctrl-C ends an answer",
}
ASK = "> "


def parse(words: list[str]) -> argparse.Namespace:
    """The command line, with the method as a block."""
    parser = Parser("llava_prumerge.inference.chat", __doc__, settings=None)
    parser.add_argument("model", help="a checkpoint of any served family")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="of the first question")
    parser.add_argument("--reduction", "--method", help="name, file or block (default: the checkpoint's own)")
    add_plugin_option(parser)
    parser.add_argument("--load", help="4bit or 8bit: the language model's matrices by bitsandbytes")
    parser.add_argument(
        "--new-tokens", type=at_least(1), default=512, help="of an answer at most (default: %(default)s)"
    )
    parser.add_argument("--device", help="such as cuda:0 or cpu (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--template", default="vicuna_v1", help="conversation template of LLaVA-1.5 and its kin")
    given = parser.parse_args(words)
    given.block = resolve(given.reduction, read_settings(given.settings), own=stored_reduction(given.model))
    return given


class Interrupted:
    """Ctrl-C while an answer is spoken: the first ends the answer behind its next token, a second one the program."""

    def __init__(self) -> None:
        self.pressed = False

    def wanted(self) -> bool:
        """Whether the answer is to go on."""
        return not self.pressed

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of Ctrl-C while the block runs, where this thread may."""
        self.pressed = False
        try:
            before = signal.signal(signal.SIGINT, self._press)
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _press(self, *_: Any) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


def told(answer: Answer) -> str:
    """What an answer took: visual tokens of all images of the conversation, and times."""
    seconds = answer.seconds
    first = answer.total_seconds - seconds["decode"]
    parts = [f"first token after {first:.2f} s"]
    if answer.new_tokens > 1 and seconds["decode"] > 0:
        rate = (answer.new_tokens - 1) / seconds["decode"]
        parts.append(f"{answer.new_tokens} tokens, {rate:.1f} a second")
    if answer.images:
        full, layers = sum(image.full for image in answer.images), sum(image.equivalent for image in answer.images)
        averaged = f" (averaged over the layers {layers:.4g})" if layers < answer.kept else ""
        pictures = f" of {len(answer.images)} images" if len(answer.images) > 1 else ""
        parts.insert(0, f"kept {answer.kept} of {full} visual tokens{pictures}{averaged}")
    return f"[{'; '.join(parts)}]"


class Terminal:
    """Reads lines, and does what they say.

    Args:
        conversation: with the model.
    """

    def __init__(self, conversation: Conversation) -> None:
        self.conversation, self.interrupted = conversation, Interrupted()

    def lines(self) -> Iterator[str]:
        """What is typed, or piped in, line by line."""
        if not sys.stdin.isatty():
            yield from sys.stdin
            return
        with contextlib.suppress(ImportError):  # arrows and earlier lines, where the platform has it
            import readline  # noqa: F401
        while True:
            try:
                yield input(ASK)
            except EOFError:
                sys.stdout.write("\n")
                return
            except KeyboardInterrupt:
                sys.stdout.write("\n")

    def run(self) -> None:
        """Until the input ends."""
        for line in self.lines():
            text = line.strip()
            if text == "/exit":
                return
            try:
                self.obey(text) if text.startswith("/") else self.answer(text)
            except (InputError, CannotGoOn, OSError) as error:
                self.say(f"error: {one_line(error)}")

    def obey(self, text: str) -> None:
        """Do a command."""
        from llava_prumerge.data.images import read_image

        name, _, rest = text.partition(" ")
        if name not in COMMANDS:
            raise InputError(f"{not_known('command', name, COMMANDS)}")
        if name == "/help":
            self.say("\n".join(COMMANDS.values()))
        elif name == "/new":
            self.conversation.begin_anew()
            self.say("[new conversation]")
        elif name == "/image":
            path = rest.strip().strip("'\"")
            if not path:
                raise InputError("/image needs the path of a picture")
            self.conversation.show(read_image(Path(path).expanduser()))
            waiting = len(self.conversation.waiting)
            self.say(f"[{waiting} {'picture' if waiting == 1 else 'pictures'} for the next question]")

    def answer(self, question: str) -> None:
        """Ask, let the answer be seen as it comes, and tell what it took."""
        if not question:
            return
        import torch

        try:
            with self.interrupted.listening():
                answer = self.conversation.ask(question, self.hear, self.interrupted.wanted)
        except torch.OutOfMemoryError as error:
            raise InputError("the conversation does not fit into the GPU's memory; /new begins another") from error
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.say(f"[stopped] {told(answer)}" if self.interrupted.pressed else told(answer))

    def hear(self, piece: str) -> None:
        """Show a piece of the answer."""
        sys.stdout.write(piece)
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """What is no answer goes to the error stream: a pipe gets answers alone."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@command()
def main(words: list[str]) -> None:
    """Run the command."""
    given = parse(words)
    from llava_prumerge.data.images import read_image  # with torch, which the help does not need
    from llava_prumerge.inference.talking import Conversation
    from llava_prumerge.model.chat import check_processor
    from llava_prumerge.model.loading import load_model

    pictures = [read_image(image) for image in given.images]  # what is wrong is said before the model is loaded
    model, processor = load_model(given.model, given.block, given.dtype, given.device, load=given.load)
    check_processor(processor, model.config)
    conversation = Conversation(model, processor, None, given.new_tokens, given.template)
    for picture in pictures:
        conversation.show(picture)
    Terminal(conversation).run()


if __name__ == "__main__":
    sys.exit(main())
