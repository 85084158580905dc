"""Mistakes in what the user gave, each told in one sentence, which is all that the command line prints."""

import sys
import textwrap
from pathlib import Path


class Error(Exception):
    """Base of every error that ganzoo raises on purpose. Its text is `ganzoo:` and one complete sentence."""

    def __init__(self, sentence):
        super().__init__(f"ganzoo: {sentence}")


class Stopped(Error):
    """A run was ended from outside, and can go on."""


class ArgumentError(Error, ValueError):
    """An argument is outside what is allowed.

    Args:
        argument: its name in Python, such as `critic_steps`; the command line shows `--critic-steps` instead.
        expectation: what follows "must be", such as `at least 1`.
        got: the value that came, shown as is.
    """

    def __init__(self, argument, expectation, got):
        super().__init__(f"{argument} must be {expectation}, got {got}.")
        self.argument, self.expectation, self.got = argument, expectation, got

    def on_command_line(self):
        return f"ganzoo: --{self.argument.replace('_', '-')} must be {self.expectation}, got {self.got}."


def program():
    """What to type for this command line: ganzoo, or the file of a variant of one's own that is its command line."""
    called = sys.argv[0]
    return f"python {called}" if called.endswith(".py") and Path(called).name != "__main__.py" else "ganzoo"


def reason(error):
    """What another library's exception says, as a part of one sentence."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0].rstrip(".:,"), 120, placeholder=" …") if lines else type(error).__name__
