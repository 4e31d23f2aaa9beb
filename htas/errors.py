"""What the person who runs `htas` can put right, told from what only its authors can."""


class UserError(ValueError):
    """A mistake of the user's: what was given, what is allowed and what to do next, in one sentence.

    The command prints it and ends with exit code 2. Any other exception is a fault of this library.
    """
