"""A job's log in the terminal, with a progress bar below it.

with wl.JobProgress("Training", epochs=5) as progress:
    wl.train("train.py", hyperparameters={"epochs": 5}, on_log=progress.line)
"""

from __future__ import annotations

import re
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_EPOCH = re.compile(r"\bepoch[ =:]+(\d+)", re.IGNORECASE)


class JobProgress:
    """Shows each log line; a line with ``epoch=N`` moves the bar.

    Args:
        title: before the bar.
        epochs: its length; without it, the bar only shows that something happens.
    """

    def __init__(self, title: str, epochs: int | None = None, console: Console | None = None) -> None:
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
        )
        console = console or Console(stderr=True)
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=epochs, said="starting")
        self._epochs = epochs

    def line(self, text: str) -> None:
        """One line of the log."""
        self._progress.console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)
        if found := _EPOCH.search(text):
            epoch = int(found[1])
            self._progress.update(self._task, completed=epoch, said=f"epoch {epoch}/{self._epochs or '?'}")

    def __enter__(self) -> JobProgress:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, value, trace)
