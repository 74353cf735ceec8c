"""Errors that explain themselves: a command line prints their message and needs no traceback."""


class ExplainedError(ValueError):
    """What was given cannot be used as it is; the message says why, and what to do."""
