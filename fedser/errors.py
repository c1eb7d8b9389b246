"""The three ways a run can end badly, each with its exit code."""


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
