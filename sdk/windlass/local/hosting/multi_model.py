"""Multi-model endpoints: which of the models under an S3 prefix a server has loaded, and which it lets go of.

    repository = Repository("s3://bucket/models/", cached=True)
    with repository.of(instance).holding("fraud.tar.gz") as held:
        instance.request("POST", held.path, ...)         # /models/<name>/invoke; not unloaded while it is held

The container's side is SageMaker's contract: ``POST /models`` loads what lies unpacked in a folder, 507 says that memory is
short, ``DELETE /models/<name>`` unloads. A request whose model is not loaded waits for it; when memory is short, the model that
was not asked for the longest goes. Sources: the developer guide's "Multi-model endpoints" and "Build Your Own Container for
SageMaker AI Multi-Model Endpoints".
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from windlass.local import storage
from windlass.local.faults import Fault
from windlass.local.hosting.instance import PATIENCE_SECONDS, Instance, NotReady, Reply, Unanswered
from windlass.local.iam.authorizer import acting_as
from windlass.local.jobs import containers

log = logging.getLogger(__name__)

_LOAD_SECONDS = 600.0
_TAKEN, _FULL = 409, 507

Values = tuple[tuple[str, float, str], ...]
"""Name, value and unit of metrics."""


class NoModel(Exception):
    """There is no such model under the prefix, or it is no archive; ``str()`` is AWS's message."""


class NotLoaded(Exception):
    """The container refused to load the model: ``reply`` is what it said."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"The container answered {reply.status} to the request to load the model")
        self.reply = reply


@dataclass(frozen=True)
class Held:
    """A loaded model. ``values``: what having it cost this request."""

    path: str
    values: Values


@dataclass(eq=False)
class _Model:
    name: str
    folder: Path
    users: int = 0
    last_used: int = 0
    cost: Future[Values] = field(default_factory=Future)

    @property
    def loaded(self) -> bool:
        return self.cost.done() and self.cost.exception() is None


class Repository:
    """The models of one multi-model variant.

    Args:
        prefix: what a TargetModel is appended to.
        cached: whether a model stays loaded once it has answered (ModelCacheSetting).
        role: who fetches the models; None: the cloud itself.
    """

    def __init__(self, prefix: str, *, cached: bool = True, role: str | None = None) -> None:
        self.prefix, self.cached, self._role = prefix, cached, role
        self._lock = threading.Lock()
        self._caches: weakref.WeakKeyDictionary[Instance, Cache] = weakref.WeakKeyDictionary()

    def of(self, instance: Instance) -> Cache:
        """What that server has loaded."""
        with self._lock:
            if instance not in self._caches:
                self._caches[instance] = Cache(weakref.proxy(instance), self)
            return self._caches[instance]

    def fetch(self, target: str, folder: Path) -> None:
        """Unpack a model into a folder. Raises NoModel."""
        uri = containers.s3_uri(f"{self.prefix.rstrip('/')}/{target.lstrip('/')}")
        with acting_as(self._role):
            if not storage.exists(uri):
                bucket, key = storage.split(uri)
                raise NoModel(
                    f"Failed to download model data(bucket: {bucket}, key: {key}). Please ensure that there is an object "
                    "located at the URL and that the role passed to CreateModel has permissions to download the model."
                )
            folder.mkdir(parents=True)
            try:
                containers.fetch({"ModelDataUrl": uri}, folder)
            except containers.FetchFailed as error:
                raise NoModel(str(error)) from error


class Cache:
    """The models that one server has loaded."""

    def __init__(self, instance: Instance, repository: Repository) -> None:
        self._instance, self._repository = instance, repository
        self._changed = threading.Condition()
        self._models: dict[str, _Model] = {}
        self._uses, self._numbers = itertools.count(1), itertools.count(1)
        self._life = 0

    def __len__(self) -> int:
        """How many are loaded."""
        with self._changed:
            return sum(model.loaded for model in self._current().values())

    def has(self, target: str) -> bool:
        """Whether that model is loaded, or on its way."""
        with self._changed:
            return target in self._current()

    @contextlib.contextmanager
    def holding(self, target: str) -> Iterator[Held]:
        """The model, loaded now if it is not, and kept until the block ends.

        Raises:
            NoModel, NotReady, NotLoaded: why it cannot be had.
            Unanswered: the server is gone.
        """
        began = time.perf_counter()
        with self._changed:
            model = self._current().get(target)
            hit, mine = model is not None and model.loaded, model is None
            if model is None:
                model = self._models[target] = self._begin(target)
            model.users += 1
            model.last_used = next(self._uses)
        try:
            try:
                cost = model.cost.result(PATIENCE_SECONDS)
            except TimeoutError as error:
                raise NotReady(f"The model {target} is still being downloaded or loaded. Try again.") from error
            values: Values = (("ModelCacheHit", float(hit), "None"),)
            if not hit:
                values += (("ModelLoadingWaitTime", (time.perf_counter() - began) * 1e6, "Microseconds"),)
            yield Held(f"/models/{model.name}/invoke", values + cost if mine else values)
        finally:
            with self._changed:
                model.users -= 1
                # What nobody could wait for goes on loading: the next request finds it.
                done = model.loaded and not model.users and self._models.get(target) is model
                if unload := done and not self._repository.cached:
                    del self._models[target]
                self._changed.notify_all()
            if unload:
                self._unload(model)

    def _current(self) -> dict[str, _Model]:
        """What this life of the server has loaded: one that was restarted has nothing."""
        if self._life != self._instance.restarts:
            self._life = self._instance.restarts
            for model in self._models.values():
                shutil.rmtree(model.folder.parent, ignore_errors=True)
            self._models.clear()
        return self._models

    # -- loading ----------------------------------------------------------------------------------------------------------

    def _begin(self, target: str) -> _Model:
        # A number besides the digest: a model may come back while its predecessor is still on its way out.
        name = f"{hashlib.sha256(target.encode()).hexdigest()[:32]}-{next(self._numbers)}"
        model = _Model(name, self._instance.folder / "models" / name / "model")
        threading.Thread(target=self._load, args=(target, model), name=f"load-{name}", daemon=True).start()
        return model

    def _load(self, target: str, model: _Model) -> None:
        """In a thread of its own: the requests that wait for it may give up, and it goes on."""
        try:
            began = time.perf_counter()
            self._repository.fetch(target, model.folder)
            fetched = time.perf_counter()
            unloading = self._ask_to_load(model)
        except Exception as error:  # noqa: BLE001 - whoever waits for the model gets it, whatever it is
            with self._changed:
                if self._models.get(target) is model:
                    del self._models[target]
                self._changed.notify_all()
            shutil.rmtree(model.folder.parent, ignore_errors=True)
            model.cost.set_exception(error)
            return
        loading = time.perf_counter() - fetched - sum(unloading)
        values = [
            ("ModelDownloadingTime", (fetched - began) * 1e6, "Microseconds"),
            ("ModelLoadingTime", loading * 1e6, "Microseconds"),
            *(("ModelUnloadingTime", seconds * 1e6, "Microseconds") for seconds in unloading),
        ]
        model.cost.set_result(tuple(values))
        with self._changed:
            self._changed.notify_all()

    def _ask_to_load(self, model: _Model) -> list[float]:
        """Returns how long the unloading of each took that had to go for it, in seconds."""
        url = self._instance.base / "models" / model.name / "model"
        body = json.dumps({"model_name": model.name, "url": str(url)}).encode()
        unloading: list[float] = []
        while True:
            reply = self._instance.request("POST", "/models", {"Content-Type": "application/json"}, body, _LOAD_SECONDS)
            if reply.status == _FULL and (idle := self._least_recently_used()):
                began = time.perf_counter()
                self._unload(idle)
                unloading.append(time.perf_counter() - began)
            elif 200 <= reply.status < 300 or reply.status == _TAKEN:
                return unloading
            else:
                raise NotLoaded(reply)

    def _least_recently_used(self) -> _Model | None:
        """One that nobody holds, which from now on is no longer there; None when there is none for too long."""

        def idle() -> list[tuple[int, str, _Model]]:
            return [
                (each.last_used, name, each) for name, each in self._models.items() if each.loaded and not each.users
            ]

        with self._changed:
            if not any(each.loaded for each in self._models.values()):
                return None  # the container's own memory is too small for it
            self._changed.wait_for(idle, PATIENCE_SECONDS)
            found = min(idle(), key=lambda each: each[0], default=None)
            if found is None:
                return None
            return self._models.pop(found[1])

    def _unload(self, model: _Model) -> None:
        try:
            reply = self._instance.request("DELETE", f"/models/{model.name}", {}, b"", _LOAD_SECONDS)
            if reply.status >= 300:
                log.warning("Model %s was not unloaded: %d %r", model.name, reply.status, reply.body[:200])
        except Unanswered as error:
            log.info("Model %s went with its server: %s", model.name, error)
        shutil.rmtree(model.folder.parent, ignore_errors=True)


def is_asked(container: Mapping[str, Any]) -> bool:
    """Whether a container definition is that of a multi-model server."""
    return bool(container.get("Mode") == "MultiModel")


def check(container: Mapping[str, Any]) -> None:
    """Raise AWS's ValidationException for a container definition that cannot be."""
    if not is_asked(container):
        if "MultiModelConfig" in container:
            raise Fault("ValidationException", "MultiModelConfig can only be specified with Mode MultiModel.")
    elif not container.get("ModelDataUrl"):
        raise Fault(
            "ValidationException", "ModelDataUrl, the S3 prefix of the models, is required with Mode MultiModel."
        )


def repository_of(container: Mapping[str, Any], role: str) -> Repository:
    """The models of a container definition with Mode MultiModel."""
    caching = container.get("MultiModelConfig", {}).get("ModelCacheSetting", "Enabled")
    return Repository(container["ModelDataUrl"], cached=caching == "Enabled", role=role)


def environment(memory_bytes: int | None) -> dict[str, str]:
    """What a multi-model server is told: that it is one, and, as here no container's limit does, what its models may hold."""
    memory = {"WINDLASS_MULTI_MODEL_MEMORY_BYTES": str(int(memory_bytes * 0.9))} if memory_bytes else {}
    return {"SAGEMAKER_MULTI_MODEL": "true", **memory}
