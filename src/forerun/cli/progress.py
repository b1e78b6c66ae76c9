"""Progress of long work: bars on a terminal, a line now and then elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from forerun.cli.console import write_line

_NUM_LINES = 20


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """Give a function that shows (stage, done, total, detail).

    Each stage has a bar with the time left. A total of 0 says that it is not known. Where standard output is no
    terminal, a stage writes about twenty lines, its last among them.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int, detail: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total or None, detail="")
            progress.update(tasks[stage], completed=done, detail=detail)
            if not console.is_terminal and total and (done == total or done % max(1, total // _NUM_LINES) == 0):
                write_line(f"{stage} {done}/{total}  {detail}".rstrip())

        yield show
