"""Run a table of functions as a command line.

A mistake in the command line, or anything that makes a command impossible, is one line on standard error and exit
code 2.
"""

import contextlib
import functools
import inspect
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, TypeAlias, Union

import tyro

from nkf import __version__
from nkf.errors import NkfError, NkfWarning

Command: TypeAlias = Callable[..., int | None]  # returns the exit code, None for 0
CommandTable: TypeAlias = dict[str, Union[Command, "CommandTable"]]


def run(commands: CommandTable, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        commands: words to functions, or to further tables.
        arguments: what follows ``nkf``; by default that of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path need not be printable
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", NkfWarning)
            warnings.showwarning = _show_warning  # catch_warnings puts the old one back
            return _run(commands, list(sys.argv[1:] if arguments is None else arguments))
    except NkfError as error:
        print("nkf:", str(error).replace("\n", " "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        with open(os.devnull, "w") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())  # else Python complains when it flushes at exit
        return 141
    except OSError as error:  # such as a full disk
        print("nkf:", f"{error.filename}: {error.strerror}" if error.filename else error, file=sys.stderr)
        return 2


def leave(code: int) -> int:
    """End this process at once with an exit code, everything printed; returns it where that has to be left to Python.

    Python frees all that it holds before it ends: a tenth of the time of ``nkf predict PHOTO``.
    """
    if "torch" in sys.modules:  # may have processes and files of its own to close
        return code
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # the reader has gone, or the stream is closed
        return code
    os._exit(code)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print our own warnings as one line; others as Python does."""
    ours = issubclass(category, NkfWarning)
    text = f"nkf: warning: {message}".replace("\n", " ") + "\n"
    print(text if ours else warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)


def _run(commands: CommandTable, arguments: list[str]) -> int:
    words, entry = ["nkf"], commands
    while True:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_help(words, entry))
            return 0
        if arguments[0] == "--version":
            print(f"nkf {__version__}")
            return 0
        word, *arguments = arguments
        if word not in entry:
            known = ", ".join(" ".join(path) for path, _ in _commands(commands))
            kind = "option" if word.startswith("-") else "command"
            raise NkfError(f"unknown {kind} {word!r}.{_perhaps(word, entry)} The commands are: {known}")
        words.append(word)
        found = entry[word]
        if not isinstance(found, dict):
            command = _parse(found, " ".join(words), arguments)
            return command() or 0
        entry = found


def _parse(function: Command, program: str, arguments: list[str]) -> Command:
    """Bind a command's options. tyro draws a box around a mistake; here it becomes the text of an exception."""
    description = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:")[0]
    config = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(_deferred(function), prog=program, description=description, args=arguments, config=config)
    except SystemExit as leave:
        if not leave.code:
            return lambda: 0  # the help was asked for and printed
        raise NkfError(f"{_one_line(complaint.getvalue())} (see {program} --help)") from None


def _deferred(function: Command) -> Callable[..., Command]:
    """Give the signature of a command to a function that only binds its arguments.

    tyro calls what it parses for while it still catches errors, and would take a command's ValueError for a mistake
    in the command line.
    """

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Command:
        return functools.partial(function, *args, **kwargs)

    return bind


def _one_line(box: str) -> str:
    """Reduce tyro's box (title, message, rule, suggestions, rule, reference) to message and suggestions.

    Its frame is drawn with lines, or with blanks and hyphens where the terminal knows no better.
    """
    sections: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯─ ")
        if text.strip("-"):
            sections[-1].append(text)
        elif sections[-1]:
            sections.append([])
    message = " ".join(sections[0]) or "wrong arguments"
    options = [re.match(r"--[\w.-]+", text) for section in sections[1:] for text in section]
    suggestions = dict.fromkeys(match.group() for match in options if match)
    hint = f" Perhaps you meant {' or '.join(suggestions)}?" if suggestions else ""
    return message[:1].lower() + message[1:] + ("." if hint and not message.endswith(".") else "") + hint


def _perhaps(word: str, entry: CommandTable) -> str:
    from difflib import get_close_matches

    matches = get_close_matches(word, entry, n=1)
    return f" Perhaps you meant {matches[0]!r}?" if matches else ""


def _commands(entry: CommandTable, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    for word, found in entry.items():
        if isinstance(found, dict):
            yield from _commands(found, (*before, word))
        else:
            yield (*before, word), found


def _help(words: list[str], entry: CommandTable) -> str:
    program = " ".join(words)
    rows = [(" ".join(path), inspect.cleandoc(function.__doc__ or "")) for path, function in _commands(entry)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        [
            f"usage: {program} COMMAND ...",
            "",
            "Facial expressions in photos, told on this machine: nothing is sent anywhere.",
            "",
            "commands:",
            *(f"  {name:{width}}  {text.splitlines()[0]}" for name, text in rows),
            "",
            "Examples:",
            *[line for _, text in rows for line in text.splitlines() if line.startswith("  nkf ")][:4],
            "",
            f"{program} COMMAND --help explains a command; nkf --version prints the version.",
        ]
    )
