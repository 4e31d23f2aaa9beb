"""Mistakes of the user's, apart from faults of this package."""


class UserError(ValueError):
    """A mistake of the user's in one sentence: the value, the values allowed, and what to do next.

    The command prints it and ends with exit code 2. Any other exception is a fault of this package.
    """
