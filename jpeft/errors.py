"""The expected exceptions of a call. The command line prints them as one line and exits with their status.

Any other exception is a bug in jpeft and keeps its traceback.
"""


class UserError(ValueError):
    """The call is wrong: a flag, a config value, a file or a column. Exit status 2."""


class RunFailed(RuntimeError):
    """The call is right but the work failed: a loss that is not finite, a full disk, no network. Exit status 1."""


class Busy(UserError):
    """Another process holds the directory's lock."""


class Stopped(RunFailed):
    """The process was asked to stop, and has saved its state."""


class Paused(Exception):
    """A run reached the epoch after which it was asked to pause, and has saved its state. Not a failure."""
