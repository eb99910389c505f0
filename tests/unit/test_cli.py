"""The command line itself: help, usage, exit codes. What the commands do is in tests/cloud."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from windlass import __version__, artifact, cli
from windlass.cli.app import app


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group."""
    command = command or typer.main.get_command(app)
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def call(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main([str(word) for word in words])
    return status, *capsys.readouterr()


# ------------------------------------------------------------------------------------------------------------------ usage


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help(path: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(*path, option, capsys=capsys)

    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: {' '.join(['windlass', *path])} ")
    says = out.split("\n\n")[1].strip()
    assert says.endswith((".", "...")), says


def test_every_option_and_argument_says_what_it_is() -> None:
    silent = []
    for path in commands():
        command: Any = typer.main.get_command(app)
        for word in path:
            command = command.commands[word]
        silent += [f"{' '.join(path)}: {p.name}" for p in command.params if not getattr(p, "help", "")]

    assert silent == []


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version", capsys=capsys) == (0, f"windlass {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fly"], "No such command 'fly'"),
        (["train"], "Missing argument 'script'"),
        (["plan"], "name a verb: windlass plan train|evaluate|register|deploy|rollback"),
        (["plan", "status"], "name a verb: windlass plan train|"),
        (["plan", "model", "show", "digits"], "No such option: --dry-run"),
        (["train", "train.py", "--instance-typ", "ml.m5.large"], "--instance-type"),
        (["deploy", "digits/1", "--bake", "long"], "Invalid value for '--bake'"),
        (["runs", "list", "--limit"], "requires an argument"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_wrong_usage_ends_with_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(*words, capsys=capsys)

    assert (status, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [(), ("runs",), ("infra",), ("local",)], ids=" ".join)
def test_a_group_alone_lists_its_commands(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(*words, capsys=capsys)

    assert status == 2
    assert "Commands:" in out + err


def test_an_error_that_windlass_explains_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    ended = call("deploy", "digits/1", "--slo", "fast", capsys=capsys)

    assert ended == (1, "", "error: Reading --slo: 'fast' is not NAME=VALUE\n")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "inference.py").write_text("def model_fn(folder): ...\n")
    artifact.build(tmp_path / "model", tmp_path / "model.tar.gz")
    artifact.open(tmp_path / "model.tar.gz", tmp_path / "opened")
    page = tmp_path / "no such folder" / "page.json"

    ended = call("openapi", tmp_path / "opened", "--out", page, capsys=capsys)

    assert ended == (1, "", f"error: {page}: No such file or directory\n")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)

    with pytest.raises(AttributeError):
        cli.main(["predict", "digits", "--file", "-"])


class Interrupted(io.TextIOBase):
    """A terminal at which someone presses Ctrl-C."""

    @property
    def buffer(self) -> Interrupted:
        return self

    def read(self, size: int | None = -1) -> str:
        raise KeyboardInterrupt

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        raise KeyboardInterrupt


def test_ctrl_c_ends_with_130_and_says_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Interrupted())

    status, out, err = call("predict", "digits", "--file", "-", capsys=capsys)

    assert (status, out) == (130, "")
    assert "What was started on AWS goes on: windlass runs list, windlass status." in err


@pytest.mark.parametrize("answer", [io.StringIO("n\n"), io.StringIO(""), Interrupted()], ids=["no", "end", "ctrl-c"])
def test_what_is_not_confirmed_is_not_done(
    answer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", answer)

    status, _, err = call("infra", "destroy", "--project", "nowhere", capsys=capsys)

    assert status == 130
    assert "Aborted." in err
