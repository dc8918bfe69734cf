"""Errors that users can mend themselves."""


class UserError(ValueError):
    """What was asked cannot be done as it stands; the message is one line that says what, where, and what to do.

    Every folder has its own kind; the command line prints them without a traceback and exits with 2.
    """


class CheckpointError(UserError):
    """A checkpoint or tokenizer that cannot be found or loaded; the message lists everything that is wrong with it."""
