"""The one exception for a user's mistake."""


class UserError(Exception):
    """A mistake that the user can mend: one line that says what was expected, what was found and what to do.

    Every script's ``main`` prints it to stderr without a traceback and returns exit code 2.
    """
