"""How the CLI prints: nouns as aligned lines or JSON, tables, hints."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def noun(value: Any, *, as_json: bool = False, quiet: bool = False) -> None:
    """A frozen dataclass: one ``field  value`` line each, empty ones left out; JSON with all of them; or its name alone."""
    if quiet:
        sys.stdout.write(f"{value.name}\n")
        return None
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.repr}
    if as_json:
        return data(fields)
    width = max(map(len, fields))
    for name, item in fields.items():
        if item not in ("", (), {}, None):
            sys.stdout.write(f"{name:<{width}}  {_text(item)}\n")
    return None


def data(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def _text(item: Any) -> str:
    if isinstance(item, Mapping):
        return ", ".join(f"{key}={_text(value)}" for key, value in item.items())
    if isinstance(item, tuple | list):
        return ", ".join(_text(value) for value in item)
    return f"{item:.4g}" if isinstance(item, float) else str(item)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")  # half a name is of no use
    for row in rows:
        shown.add_row(*(_text(cell) for cell in row))
    # In a pipe there is no width to fit into, and a line is a row.
    Console(width=None if sys.stdout.isatty() else 10_000).print(shown)


def say(text: str) -> None:
    """Beside the result: progress and remarks."""
    sys.stderr.write(text + "\n")


def hint(command: str) -> None:
    """What one would do next."""
    say(f"next: {command}")
