"""The one kind of error that users can mend themselves."""


class UserError(ValueError):
    """What was asked cannot be done as it stands; the message is one line that says what, where, and what to do.

    Every room has its own kind; the command line prints them without a traceback and exits with 2.
    """
