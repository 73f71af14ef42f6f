"""A progress bar for people: on standard error, and only where it is a terminal and the work takes a while.

Training takes so long that it tells how far it is in a file too, in a plain line a minute.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")
ShowStep = Callable[[int, float], None]  # takes the number of steps that are done, and the last loss

PATIENCE_SECONDS = 2.0
MANY_ITEMS = 20
LINE_SECONDS = 60.0  # between two plain lines


class Progress(Protocol):
    """Show how far a loop is: pass items through, given a description and their number, 0 if that is not known."""

    def __call__(self, items: Iterable[Item], text: str, total: int, /) -> Iterable[Item]: ...


def no_progress(items: Iterable[Item], text: str, total: int, /) -> Iterable[Item]:
    """Pass the items through and show nothing."""
    return items


def track(items: Iterable[Item], text: str, total: int) -> Iterator[Item]:
    """Pass items through, with a bar from the start if there are more than `MANY_ITEMS`, else after two seconds."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    # rich may only take over standard output while that is the terminal too; else lines meant for a file were lost.
    bar = Progress(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
    task = bar.add_task(text, total=total or None)  # 0: not known
    start = time.monotonic()
    try:
        for done, item in enumerate(items):
            if not bar.live.is_started and (total > MANY_ITEMS or time.monotonic() - start > PATIENCE_SECONDS):
                bar.start()
            bar.update(task, completed=done)
            yield item
    finally:
        bar.stop()


def show_nothing(done: int, loss: float) -> None:
    """Take what `steps_shown` yields, where another process shows it."""


@contextmanager
def steps_shown(done: int, total: int) -> Iterator[ShowStep]:
    """Yield a function to call after each step of a training: a bar on a terminal, else a plain line a minute.

    Args:
        done: steps before the first.
        total: steps of the whole training.
    """
    if not sys.stderr.isatty():
        yield _plain_lines(done, total)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), *Progress.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
    loss_column = TextColumn("loss {task.fields[loss]:.3f}")
    console = Console(stderr=True)
    with Progress(*columns, loss_column, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("training", total=total, completed=done, loss=float("nan"))
        yield lambda done, loss: bar.update(task, completed=done, loss=loss)


def _plain_lines(first: int, total: int) -> ShowStep:
    start = told = time.monotonic()

    def show(done: int, loss: float) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= LINE_SECONDS:
            told = now
            minutes = (now - start) / max(1, done - first) * (total - done) / 60
            text = f"training: step {done:,} of {total:,}, loss {loss:.3f}, {minutes:.0f} min left"
            print(text, file=sys.stderr, flush=True)

    return show
