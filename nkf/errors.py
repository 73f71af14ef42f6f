"""Errors that a user can cause; the command line shows their text as one line."""


class NkfError(Exception):
    """The command or call itself is wrong: option, path, model, configuration or dataset (exit code 2)."""


class ImageError(NkfError):
    """One input image cannot be used; in a batch it becomes a row with status ``error`` (exit code 1)."""


class NkfWarning(UserWarning):
    """Something that a user should look at, in one line, while the work goes on."""
