"""What the documents tell users to type, typed.

Every ```bash, ```console and ```python block of README.md and docs/*.md runs, from the first to the last of a document, in one
new folder, which has the repository's templates/, and one fresh local cloud with the foundation in it, as a reader works
through it. In a console block, the lines after `$ ` run. Comments on the line above a block steer this, and Markdown does not
show them:

    <!-- no-test: needs an AWS account -->      this block is left out, and why
    <!-- files: templates/image-classifier -->  what that folder of the repository holds is copied into the reader's first
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- (?P<directive>no-test|files)(?:: *(?P<value>.*?))? *-->\n)?"
    r"^```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    line: int  # where it begins in the document, from 1
    directive: str | None = None
    value: str | None = None

    @property
    def runs(self) -> bool:
        return self.language in ("bash", "console", "python") and self.directive != "no-test"

    @property
    def script(self) -> str:
        """The shell's view of it."""
        if self.language == "console":
            return "".join(f"{line[2:]}\n" for line in self.body.splitlines() if line.startswith("$ "))
        if self.language == "python":
            return f"{sys.executable} - <<'END-OF-BLOCK'\n{self.body}END-OF-BLOCK\n"
        return self.body


def blocks(text: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(found["language"], found["body"], line, found["directive"], found["value"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_of_the_documents_runs(document: Path, tmp_path: Path) -> None:
    tested = [block for block in blocks(document.read_text(encoding="utf-8")) if block.runs]
    if not tested:
        return
    (tmp_path / "templates").symlink_to(ROOT / "templates")  # a reader is in a checkout
    script = "set -euo pipefail\n"
    for block in tested:
        if block.directive == "files":
            shutil.copytree(
                ROOT / str(block.value),
                tmp_path,
                ignore=shutil.ignore_patterns("__pycache__", ".*"),
                dirs_exist_ok=True,
            )
        script += f"echo '=== {document.name}, line {block.line}' >&2\n{block.script}"
    # AWS_* of the developer's own account must not be reached.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "WINDLASS_", "SM_"))
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"

    done = subprocess.run(
        ["windlass", "local", "run", "--foundation", "--", "bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout[done.stdout.rfind("\n=== ") + 1 :][-5000:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_that_is_left_out_says_why(document: Path) -> None:
    unexplained = [
        f"{document.name}:{block.line}"
        for block in blocks(document.read_text(encoding="utf-8"))
        if block.directive == "no-test" and not block.value
    ]

    assert unexplained == []


def test_blocks_are_found_with_their_directives() -> None:
    document = """\
```console
$ echo one
one
$ echo two
```
<!-- no-test: needs an AWS account -->
```bash
windlass infra deploy
```
<!-- no-test -->
```python
print(1)
```
<!-- files: templates/image-classifier -->
```bash
ls
```
```
no language
```
```json
{}
```
"""
    console, account, unexplained, files, data = blocks(document)

    assert (console.line, console.runs, console.script) == (1, True, "echo one\necho two\n")
    assert (account.line, account.runs, account.value) == (7, False, "needs an AWS account")
    assert (unexplained.runs, unexplained.value) == (False, None)
    assert (files.runs, files.directive, files.value) == (True, "files", "templates/image-classifier")
    assert not data.runs
