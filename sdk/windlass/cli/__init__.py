"""The ``windlass`` command: parse, one call, print, and the next command as a hint.

The noun or the plan goes to stdout, everything said beside it to stderr, so that output can be piped. Exit codes: 0 done, 1 an
error that Windlass explains, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


_PLANNED = ("train", "evaluate", "register", "deploy", "rollback", "model")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    from windlass.cli.app import app
    from windlass.errors import WindlassError

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["plan"] and arguments[1:2] and arguments[1] in _PLANNED:
        arguments = [*arguments[1:], "--dry-run"]
    try:
        app(arguments, prog_name="windlass")
    except WindlassError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except OSError as error:
        if error.filename is None:
            raise  # no file that the user named
        sys.stderr.write(f"error: {error.filename}: {error.strerror}\n")
        return 1
    except SystemExit as ended:
        # How typer ends, also after wrong usage, which it explains itself. Its errors have no public root to catch.
        return ended.code if isinstance(ended.code, int) else 0
    return 0
