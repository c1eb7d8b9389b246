"""The three ways a run can end badly, each with its exit code."""

import difflib
from collections.abc import Iterable


class FedserError(Exception):
    """Shown to the user as its message, without a traceback of ours (a failed client's is part of the message)."""

    exit_code = 1


class InputError(FedserError):
    """Bad input or configuration: says which file, key or speaker, and what to do. Nothing has been started."""

    exit_code = 2


class RunError(FedserError):
    """A run that was well configured failed: a client raised, a loss became NaN, the disk filled up."""

    exit_code = 1


class Interrupted(FedserError):
    """The user pressed Ctrl-C."""

    exit_code = 130


def nearest(word: str, known: Iterable[str], hint: str) -> str:
    """The hint with the nearest known word in it, for the end of a message; nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return hint.format(near[0]) if near else ""
