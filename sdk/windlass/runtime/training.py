"""Runs a training script under SageMaker's container contract: ``python -m windlass.runtime.training``.

It reads ``input/config/*.json`` below ``SAGEMAKER_BASE_DIR`` (``/opt/ml``), sets the ``SM_*`` variables, turns hyperparameters
into ``--key value`` and runs the script in this very process: SIGTERM reaches the script itself, and its exit code is ours.
A script that raises leaves its exception and traceback in ``output/failure``, which becomes the job's FailureReason.

The names, the encoding of values and the arguments are those of the official training toolkit (aws/sagemaker-training-toolkit):
a script cannot tell the two apart. This module uses the standard library alone, so that a script starts at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

FAILURE_CHARACTERS = 8192
"""SageMaker shows the first 1,024 characters of the failure file; the rest helps whoever opens it."""

BASE = Path("/opt/ml")
MASTER_PORT = "7777"
"""The official one. WINDLASS_MASTER_PORT overrides it where the hosts of several jobs share one machine."""


class Refused(Exception):
    """The job's configuration cannot be run; the message says why."""


FRAMEWORK = ("sagemaker_", "_tuning_objective_metric")
"""How the hyperparameters begin that SageMaker adds: scripts do not get them as arguments."""


@dataclass(frozen=True)
class Job:
    """What the files under ``input/config`` say.

    Attributes:
        base: ``/opt/ml``, or what stands for it.
        hyperparameters: the user's, decoded.
        framework: SageMaker's own, decoded.
        resources: ``resourceconfig.json``.
        inputs: ``inputdataconfig.json``: channel name -> its configuration.
    """

    base: Path
    hyperparameters: dict[str, Any]
    framework: dict[str, Any]
    resources: dict[str, Any]
    inputs: dict[str, Any]

    @classmethod
    def read(cls, base: Path) -> Job:
        """From the files of one host."""
        config = base / "input" / "config"
        decoded = {name: _decode(value) for name, value in _load(config / "hyperparameters.json").items()}
        return cls(
            base=base,
            hyperparameters={name: value for name, value in decoded.items() if not name.startswith(FRAMEWORK)},
            framework={name: value for name, value in decoded.items() if name.startswith(FRAMEWORK)},
            resources=_load(config / "resourceconfig.json"),
            inputs=_load(config / "inputdataconfig.json"),
        )

    @property
    def code(self) -> Path:
        """The folder of the user's source."""
        given = os.environ.get("SAGEMAKER_SUBMIT_DIRECTORY") or self.framework.get("sagemaker_submit_directory")
        folder = Path(str(given or self.base / "code"))
        if "://" in str(given):
            raise Refused(f"SAGEMAKER_SUBMIT_DIRECTORY must be a folder in the container, not {given}")
        return folder

    @property
    def program(self) -> Path:
        """The user's script."""
        name = os.environ.get("SAGEMAKER_PROGRAM") or self.framework.get("sagemaker_program")
        if not name:
            raise Refused("The hyperparameter sagemaker_program is missing: the path of the script within the source")
        path = self.code / str(name)
        if not path.is_file():
            held = ", ".join(sorted(p.relative_to(self.code).as_posix() for p in _files(self.code))[:20]) or "nothing"
            raise Refused(f"The source holds no file '{name}' (sagemaker_program). It holds: {held}")
        if path.suffix not in (".py", ".sh"):
            raise Refused(f"sagemaker_program must be a .py or .sh file, not '{name}'")
        return path

    @property
    def arguments(self) -> list[str]:
        """The hyperparameters as a command line, in the order of their names."""
        words = []
        for name in sorted(self.hyperparameters):
            words += [f"--{name}" if len(name) > 1 else f"-{name}", _argument(self.hyperparameters[name])]
        return words

    def torchrun(self) -> list[str]:
        """torchrun's arguments for this host, when the hyperparameter sagemaker_torch_distributed_enabled asks for it."""
        facts = self.environment()
        return [
            "-m",
            "torch.distributed.run",
            f"--nnodes={facts['SM_HOST_COUNT']}",
            f"--nproc_per_node={max(1, int(facts['SM_NUM_GPUS']))}",
            f"--node_rank={facts['SM_CURRENT_HOST_RANK']}",
            f"--master_addr={facts['SM_MASTER_ADDR']}",
            f"--master_port={facts['SM_MASTER_PORT']}",
        ]

    def environment(self) -> dict[str, str]:
        """The ``SM_*`` variables."""
        base, resources = self.base, self.resources
        hosts = resources.get("hosts", ["algo-1"])
        host = resources.get("current_host", hosts[0])
        group = resources.get("current_group_name", "homogeneousCluster")
        groups = resources.get("instance_groups", [])
        channels = {name: str(base / "input" / "data" / name) for name in sorted(self.inputs)}
        program = str(self.framework.get("sagemaker_program") or os.environ.get("SAGEMAKER_PROGRAM", ""))
        facts: dict[str, Any] = {
            "HOSTS": hosts,
            "CURRENT_HOST": host,
            "CURRENT_HOST_RANK": str(hosts.index(host)),
            "HOST_COUNT": str(len(hosts)),
            "CURRENT_INSTANCE_TYPE": resources.get("current_instance_type", "local"),
            "CURRENT_INSTANCE_GROUP": group,
            "CURRENT_INSTANCE_GROUP_HOSTS": next(
                (g["hosts"] for g in groups if g["instance_group_name"] == group), hosts
            ),
            "INSTANCE_GROUPS": [g["instance_group_name"] for g in groups],
            "INSTANCE_GROUPS_DICT": {g["instance_group_name"]: g for g in groups},
            "NETWORK_INTERFACE_NAME": resources.get("network_interface_name", "eth0"),
            "MASTER_ADDR": hosts[0] if base == BASE else "127.0.0.1",  # outside of a container algo-1 does not resolve
            "MASTER_PORT": os.environ.get("WINDLASS_MASTER_PORT", MASTER_PORT),
            "NUM_CPUS": str(_count_cpus()),
            "NUM_GPUS": str(_count_devices(r"nvidia\d+")),
            "NUM_NEURONS": str(_count_devices(r"neuron\d+")),
            "MODEL_DIR": str(base / "model"),
            "INPUT_DIR": str(base / "input"),
            "INPUT_DATA_DIR": str(base / "input" / "data"),
            "INPUT_CONFIG_DIR": str(base / "input" / "config"),
            "OUTPUT_DIR": str(base / "output"),
            "OUTPUT_DATA_DIR": str(base / "output" / "data"),
            "OUTPUT_INTERMEDIATE_DIR": str(base / "output" / "intermediate"),
            "OUTPUT_FAILURE": str(base / "output" / "failure"),
            "LOG_LEVEL": str(self.framework.get("sagemaker_container_log_level", 20)),
            "CHANNELS": list(channels),
            "HPS": self.hyperparameters,
            "RESOURCE_CONFIG": resources,
            "INPUT_DATA_CONFIG": self.inputs,
            "USER_ENTRY_POINT": program,
            "MODULE_NAME": Path(program).stem,
            "MODULE_DIR": str(self.code),
            "USER_ARGS": self.arguments,
            "FRAMEWORK_PARAMS": {
                name: value
                for name, value in self.framework.items()
                if name not in ("sagemaker_program", "sagemaker_submit_directory")
            },
        }
        facts |= {f"CHANNEL_{name.upper()}": path for name, path in channels.items()}
        facts |= {f"HP_{name.upper()}": value for name, value in self.hyperparameters.items()}
        facts["TRAINING_ENV"] = {
            "additional_framework_parameters": facts["FRAMEWORK_PARAMS"],
            "channel_input_dirs": channels,
            "current_host": host,
            "hosts": hosts,
            "hyperparameters": self.hyperparameters,
            "input_config_dir": facts["INPUT_CONFIG_DIR"],
            "input_data_config": self.inputs,
            "input_dir": facts["INPUT_DIR"],
            "is_master": host == hosts[0],
            "job_name": os.environ.get("TRAINING_JOB_NAME", ""),
            "log_level": int(facts["LOG_LEVEL"]),
            "master_hostname": hosts[0],
            "model_dir": facts["MODEL_DIR"],
            "module_dir": facts["MODULE_DIR"],
            "module_name": facts["MODULE_NAME"],
            "network_interface_name": facts["NETWORK_INTERFACE_NAME"],
            "num_cpus": int(facts["NUM_CPUS"]),
            "num_gpus": int(facts["NUM_GPUS"]),
            "output_data_dir": facts["OUTPUT_DATA_DIR"],
            "output_dir": facts["OUTPUT_DIR"],
            "resource_config": resources,
            "user_entry_point": program,
        }
        return {f"SM_{name}": _variable(value) for name, value in facts.items()}


def main() -> None:
    """Run the job of this container. Returns when its script does; exits as the script exits."""
    base = Path(os.environ.get("SAGEMAKER_BASE_DIR") or BASE)
    try:
        job = Job.read(base)
        program = job.program
        for folder in ("model", "output/data"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        os.environ.update(job.environment())
    except Refused as error:
        _fail(base, str(error))
    os.chdir(job.code)
    if job.framework.get("sagemaker_torch_distributed_enabled"):
        command = [sys.executable, *job.torchrun(), str(program), *job.arguments]
        os.execv(sys.executable, command)  # noqa: S606
    if program.suffix == ".sh":
        shell = next((path for path in ("/bin/bash", "/usr/bin/bash") if os.path.exists(path)), "/bin/sh")  # noqa: PTH110
        os.execv(shell, [shell, str(program), *job.arguments])  # noqa: S606  (it becomes the process that gets SIGTERM)
    _run(base, program, job.code, job.arguments)


def _run(base: Path, program: Path, code: Path, arguments: list[str]) -> None:
    """Be ``python PROGRAM ARGUMENTS``, and note how it fails."""
    sys.argv = [str(program), *arguments]
    sys.path.insert(0, str(program.parent))
    if program.parent != code:
        sys.path.insert(1, str(code))
    main_module = types.ModuleType("__main__")
    main_module.__file__ = str(program)
    main_module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main_module  # it stays: threads, atexit hooks and pickles look names up in it
    try:
        exec(compile(program.read_bytes(), str(program), "exec"), main_module.__dict__)  # noqa: S102
    except SystemExit as error:
        if isinstance(error.code, str):
            _write_failure(base, error.code)
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (the interpreter's own last resort catches as much)
        error.__traceback__ = _users_frames(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)  # the script may have installed its own
        summary = "".join(traceback.format_exception_only(error)).strip()
        _write_failure(base, f"{summary}\n\n{''.join(traceback.format_exception(error))}")
        sys.exit(1)


def _users_frames(trace: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback without this module's own frames, as if Python had run the script directly."""
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _fail(base: Path, message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    _write_failure(base, message)
    sys.exit(1)


def _write_failure(base: Path, text: str) -> None:
    path = base / "output" / "failure"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text[:FAILURE_CHARACTERS], encoding="utf-8", errors="replace")


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    loaded = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict):
        raise Refused(f"{path} must hold a JSON object")
    return loaded


def _decode(value: str) -> Any:
    """SDKs encode hyperparameters as JSON, people do not: what is no JSON is the text itself."""
    try:
        return json.loads(value)
    except (ValueError, TypeError):
        return value


def _argument(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={item}" for name, item in sorted(value.items()))
    return "" if value is None else str(value)


def _variable(value: Any) -> str:
    if value is None:
        return ""
    # Without NUL: no environment can carry it.
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))


def _count_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count_devices(pattern: str) -> int:
    return sum(bool(re.fullmatch(pattern, name)) for name in os.listdir("/dev"))  # noqa: PTH208


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
