"""The environment of the model server, read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from windlass.runtime import telemetry

WORKER_KINDS = ("auto", "thread", "process", "spawn")


class BadSetting(Exception):
    """An environment variable that cannot be used. The message names it."""


@dataclass(frozen=True)
class Settings:
    """What the host has set. `windlass.runtime.server` lists the variables."""

    multi_model: bool
    model_dir: Path
    code_dir: Path
    program: str
    host: str
    port: int
    workers: int
    worker_kind: str
    threads: int
    pinned: bool
    timeout_seconds: float
    default_accept: str
    max_payload_bytes: int
    queue_size: int
    drain_seconds: float
    max_batch_size: int
    batch_delay_seconds: float
    memory_bytes: int
    stalled_seconds: float
    emf_seconds: int
    emf_dimensions: Mapping[str, str]

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Settings:
        """What the host has set, with the defaults of `windlass.runtime.server`.

        Raises:
            BadSetting: names the variable, its value and what it should be.
        """

        def number(name: str, default: int, least: int, most: int = 2**31) -> int:
            value = env.get(name) or str(default)
            try:
                parsed = int(value)
            except ValueError:
                parsed = least - 1
            if not least <= parsed <= most:
                raise BadSetting(f"{name}={value!r} is not a whole number from {least} to {most}.")
            return parsed

        # In multi-model mode the server tells its workers which model is theirs.
        own = env.get("WINDLASS_MODEL_DIR")
        payload_mb = number("SAGEMAKER_MAX_PAYLOAD_IN_MB", 6, 0, 2047)  # 0: batch transform's "no limit"
        try:
            emf_dimensions = telemetry.dimensions(env.get("WINDLASS_EMF_DIMENSIONS") or "")
        except ValueError as error:
            raise BadSetting(f"WINDLASS_EMF_DIMENSIONS: {error}.") from error
        worker_kind = env.get("WINDLASS_WORKER_KIND") or "auto"
        if worker_kind not in WORKER_KINDS:
            raise BadSetting(f"WINDLASS_WORKER_KIND={worker_kind!r} is not one of {', '.join(WORKER_KINDS)}.")
        model_dir = Path(own) if own else Path(env.get("SAGEMAKER_BASE_DIR") or "/opt/ml") / "model"
        submitted = env.get("SAGEMAKER_SUBMIT_DIRECTORY") or ""
        # The SDKs also write s3://.../sourcedir.tar.gz here; that code has been unpacked into the model's folder.
        code_dir = Path(submitted) if submitted and "://" not in submitted else model_dir / "code"
        if own and (model_dir / "code").is_dir():
            code_dir = model_dir / "code"  # what is submitted is then for models that bring none
        return cls(
            multi_model=(env.get("SAGEMAKER_MULTI_MODEL") or "").lower() == "true",
            model_dir=model_dir,
            code_dir=code_dir,
            program=env.get("SAGEMAKER_PROGRAM") or "inference.py",
            host=env.get("WINDLASS_BIND_HOST") or "0.0.0.0",  # noqa: S104 - in a container, SageMaker connects from outside
            port=number("SAGEMAKER_BIND_TO_PORT", 8080, 0, 65535),
            workers=number("SAGEMAKER_MODEL_SERVER_WORKERS", 1, 1, 1024),
            worker_kind=worker_kind,
            threads=number("WINDLASS_THREADS", 0, 0, 4096),
            pinned=number("WINDLASS_PIN_THREADS", 0, 0, 1) == 1,
            timeout_seconds=number("SAGEMAKER_MODEL_SERVER_TIMEOUT", 60, 1),
            default_accept=env.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT") or "",
            max_payload_bytes=number("WINDLASS_MAX_PAYLOAD_BYTES", payload_mb << 20 or 2**31, 1),
            queue_size=number("WINDLASS_QUEUE_SIZE", 100, 0),
            drain_seconds=number("WINDLASS_DRAIN_SECONDS", 25, 0),
            max_batch_size=number("WINDLASS_MAX_BATCH_SIZE", 32, 1, 4096),
            batch_delay_seconds=number("WINDLASS_MAX_BATCH_DELAY_MS", 0, 0, 60_000) / 1000,
            memory_bytes=number("WINDLASS_MULTI_MODEL_MEMORY_BYTES", 0, 0, 2**50),
            stalled_seconds=number("WINDLASS_STALLED_SECONDS", 30, 1, 3600),
            emf_seconds=number("WINDLASS_EMF_SECONDS", 0, 0, 3600),
            emf_dimensions=emf_dimensions,
        )


def cores() -> int:
    """How many cores this process may use: the scheduler's mask, and the quota that a container runtime sets."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, _, period = quota.read_text().partition(" ")
        if limit.isdecimal() and period.strip().isdecimal():
            allowed = min(allowed, max(1, int(limit) // int(period)))
    return allowed
