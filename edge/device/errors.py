"""The base of all errors that explain themselves."""


class ExplainedError(ValueError):
    """Something that a user can put right; the message says what was expected, what came and what to do."""
