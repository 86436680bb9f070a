"""The two ways a call can end badly, told apart so that the command line can answer each with one line.

Every other exception is a defect of ours and keeps its traceback.
"""


class UserError(ValueError):
    """The call was wrong: a flag, a config value, a file or a column. Exit status 2."""


class RunFailed(RuntimeError):
    """The call was right and the work failed: a loss that is not finite, a full disk, no hub. Exit status 1."""


class Busy(UserError):
    """Another process is at work in the directory."""


class Stopped(RunFailed):
    """The process was told to stop and has saved what it had."""


class Paused(Exception):
    """No bad end: a run has come to the epoch after which it was to wait, and has saved what it had."""
