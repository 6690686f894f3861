"""Errors that a person can act on, and the exit codes that a batch script acts on."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a Convoy process tells the batch script that started it."""

    FINISHED = 0
    FAILED = 1
    PREFLIGHT = 3
    RESUMABLE = 75


class ConvoyError(Exception):
    """A mistake or a condition that the user can fix.

    The message is all that the user sees (no traceback), so it says in one or two
    lines what was wrong, what was expected and what to do.
    """

    exit_code = ExitCode.FAILED
