"""The base of every error that a user can put right."""


class ExplainedError(ValueError):
    """Raised for what a user can put right; the message says what was expected, what came and what to do."""
