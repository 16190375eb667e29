"""Errors a user can act on, each with the process exit code it maps to.

Exit codes: 0 done and any check holds, 1 unexpected failure, 2 bad usage or
configuration, 3 a check ran and the answer is no, 4 a bad input file,
130 interrupted.
"""


class TserError(Exception):
    """Base of every expected failure; the message is one plain sentence for the user."""

    exit_code = 1


class UsageError(TserError):
    """A command, option or configuration value that cannot be used."""

    exit_code = 2


class CheckFailed(TserError):
    """A check ran to its end and the answer is no."""

    exit_code = 3


class InputFileError(TserError):
    """An input file that is missing, damaged or not what it claims to be."""

    exit_code = 4
