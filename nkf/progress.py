"""A progress bar for people: on standard error, and only where it is a terminal and the work takes a while."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")

PATIENCE_SECONDS = 2.0
MANY_ITEMS = 20


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
