"""Layers: what a requirements.txt asks for, over the packages of this interpreter, and never among them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from windlass.local.jobs import environments
from windlass.local.jobs.environments import Environments, RequirementsFailed
from windlass.local.processes import Keeper


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    keeper.close()


@pytest.fixture
def layers(keeper: Keeper, tmp_path: Path) -> Environments:
    return Environments(keeper, tmp_path / "cache")


def wheel(folder: Path, name: str, version: str, text: str = "", scripts: str = "") -> Path:
    """A wheel with one module, so that no index is needed."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", text or f"version = '{version}'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        if scripts:
            archive.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{scripts}\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    return path


def requirements(tmp_path: Path, *lines: str) -> Path:
    folder = tmp_path / "source"
    folder.mkdir(exist_ok=True)
    path = folder / "requirements.txt"
    path.write_text("\n".join(["--no-index", "--find-links .", *lines]) + "\n")
    return path


def python(layer: Path, code: str) -> str:
    return subprocess.run(
        [layer / "bin" / "python", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_layer_adds_to_this_interpreters_packages_and_leaves_them_alone(layers: Environments, tmp_path: Path) -> None:
    asked = requirements(tmp_path, "layered_thing==2.0", "boto3")
    wheel(asked.parent, "layered_thing", "2.0")
    said: list[str] = []

    layer = layers.layer(asked, say=said.append)

    assert layer
    assert (
        python(layer, "import layered_thing, boto3, windlass.runtime.training; print(layered_thing.version)") == "2.0"
    )
    assert any("Successfully installed layered_thing" in line.replace("-", "_") for line in said)
    assert not any("Collecting boto3" in line for line in said)
    with pytest.raises(ModuleNotFoundError):
        __import__("layered_thing")


def test_a_layer_has_its_way_over_what_is_installed(layers: Environments, tmp_path: Path) -> None:
    asked = requirements(tmp_path, "six==0.0.1")
    wheel(asked.parent, "six", "0.0.1")

    layer = layers.layer(asked, say=lambda line: None)

    assert layer
    assert python(layer, "import six; print(six.version)") == "0.0.1"


def test_the_second_time_it_is_there_at_once(layers: Environments, keeper: Keeper, tmp_path: Path) -> None:
    asked = requirements(tmp_path, "layered_thing")
    wheel(asked.parent, "layered_thing", "1.0")
    first = layers.layer(asked, say=lambda line: None)
    keeper.close()  # so that nothing can be installed any more

    second = layers.layer(asked, say=lambda line: pytest.fail(f"pip ran: {line}"))

    assert first == second


def test_other_requirements_and_other_files_that_they_name_are_another_layer(
    layers: Environments, tmp_path: Path
) -> None:
    asked = requirements(tmp_path, "layered_thing")
    wheel(asked.parent, "layered_thing", "1.0")
    first = layers.layer(asked, say=lambda line: None)
    wheel(asked.parent, "layered_thing", "1.1")

    second = layers.layer(asked, say=lambda line: None)

    assert first != second
    assert second
    assert python(second, "import layered_thing; print(layered_thing.version)") == "1.1"


@pytest.mark.parametrize("text", ["", "# nothing\n\n", None])
def test_nothing_asked_is_no_layer(layers: Environments, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "requirements.txt"
    if text is not None:
        path.write_text(text)

    assert layers.layer(path, say=lambda line: pytest.fail(line)) is None


def test_what_pip_cannot_do_is_told_in_its_words_and_tried_again(layers: Environments, tmp_path: Path) -> None:
    asked = requirements(tmp_path, "layered_thing>=3")

    with pytest.raises(RequirementsFailed, match=r"ERROR: No matching distribution found for layered_thing>=3"):
        layers.layer(asked, say=lambda line: None)

    wheel(asked.parent, "layered_thing", "3.0")
    assert layers.layer(asked, say=lambda line: None)


def test_pip_can_be_cancelled(layers: Environments, tmp_path: Path) -> None:
    asked = requirements(tmp_path, "layered_thing")
    wheel(asked.parent, "layered_thing", "1.0")

    with pytest.raises(RequirementsFailed):
        layers.layer(asked, say=lambda line: None, cancelled=lambda: True)


def test_programs_run_in_the_uppermost_layer(layers: Environments, tmp_path: Path) -> None:
    asked = requirements(tmp_path, "layered_thing")
    wheel(
        asked.parent,
        "layered_thing",
        "1.0",
        "import sys\ndef main():\n    print('main', sys.prefix)\n",
        "layered-thing = layered_thing:main",
    )
    layer = layers.layer(asked, say=lambda line: None)
    assert layer
    own = tmp_path / "a folder with spaces"
    layers.overlay(own, [layer])
    variables = environments.variables([own, layer], {"PATH": os.environ["PATH"]})

    def run(*command: str) -> str:
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()

    assert run("layered-thing") == f"main {layer}"
    assert run("python3", "-c", "import sys; print(sys.prefix)") == str(own)
    assert run("pip", "--version").startswith("pip ")
    thing = wheel(asked.parent, "own_thing", "1.0")
    run("pip", "install", "--quiet", "--no-index", str(thing))
    assert run("python", "-c", "import own_thing, layered_thing; print(own_thing.__file__)").startswith(str(own))


def test_environments_made_at_once_share_one_folder_of_programs(layers: Environments, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as together:
        made = list(together.map(lambda n: tmp_path / f"env-{n}", range(8)))
        list(together.map(lambda folder: layers.overlay(folder, []), made))

    assert {(folder / "programs").resolve() for folder in made} == set((tmp_path / "cache").iterdir())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for folder in made[:2]:
        said = subprocess.run(
            [folder / "programs" / "pip", "config", "debug"], capture_output=True, text=True, check=True
        )
        assert f"{folder}/pip.conf" in said.stdout


def test_without_layers_it_is_this_interpreter() -> None:
    assert environments.python([]) == sys.executable
    assert environments.variables([], {"PATH": "/bin"}) == {}
