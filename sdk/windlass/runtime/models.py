"""Multi-model mode: models that come and go while the server runs, as SageMaker's multi-model endpoints ask for them.

    SAGEMAKER_MULTI_MODEL=true python -m windlass.runtime.server

    POST   /models               {"model_name": "a1b2", "url": "/opt/ml/models/a1b2/model"}: load what lies unpacked there
    GET    /models               {"models": [{"modelName", "modelUrl"}], "nextPageToken"}, with ?limit= and ?next_page_token=
    GET    /models/a1b2          {"modelName", "modelUrl"}
    DELETE /models/a1b2          unload, once what it is answering has been answered
    POST   /models/a1b2/invoke   as /invocations (`windlass.runtime.server` answers it)
    GET    /models/a1b2/openapi.json

| status | |
|---|---|
| 400 | the request names no model, or no folder |
| 404 | no such model is loaded |
| 409 | it is loaded already, or is being loaded |
| 500 | its code raised: the message is the user's traceback |
| 507 | there is not enough memory. Nothing is evicted here: the platform decides, unloads some and asks again |

Errors are JSON as Multi Model Server writes it: ``{"code", "type", "message"}``. Each model has worker processes of its own, so
that the modules, the hooks and the crashes of one never meet another's.

Source of the contract: "Build Your Own Container for SageMaker AI Multi-Model Endpoints" in AWS's developer guide.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qs

from windlass.runtime import memory
from windlass.runtime.hooks import Reply
from windlass.runtime.workers import Pool

_PAGE = 100
_NAME_CHARACTERS = 1024
_TYPES = {
    400: "BadRequestException",
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    409: "ConflictStatusException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
    507: "InsufficientMemoryException",
}


class Refused(Exception):
    """A request about models that cannot be met. ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, eq=False, slots=True)
class _Model:
    name: str
    url: str
    pool: Pool


class Models:
    """The loaded models by name. Used in the event loop's thread.

    Args:
        start: makes the worker pool of a model from its name and its folder.
        memory_bytes: what all models together may hold; 0 is the machine's own limit.
        unload_seconds: how long an unload waits for what is running.
        log: is told what happens to models: ``log(event, **fields)``.
    """

    def __init__(
        self,
        start: Callable[[str, Path], Pool],
        *,
        memory_bytes: int,
        unload_seconds: float,
        log: Callable[..., None],
    ) -> None:
        self._start, self._memory_bytes, self._unload_seconds, self._log = start, memory_bytes, unload_seconds, log
        self._loaded: dict[str, _Model] = {}
        self._loading: dict[str, _Model] = {}

    @property
    def pools(self) -> list[Pool]:
        return [model.pool for model in (*self._loaded.values(), *self._loading.values())]

    def pool(self, name: str) -> Pool:
        """The workers of a loaded model.

        Raises:
            Refused: 404.
        """
        return self._find(name).pool

    def folder(self, name: str) -> Path:
        """Where a loaded model lies.

        Raises:
            Refused: 404.
        """
        return Path(self._find(name).url)

    async def answer(self, method: str, path: str, query: bytes, body: bytes) -> Reply:
        """The routes of this module but `invoke`. Never raises what is the caller's fault."""
        name = path.removeprefix("/models").removeprefix("/")
        try:
            if not name:
                if method == "POST":
                    return await self._load(body)
                if method == "GET":
                    return self._list(query)
                return refusal(405, "use GET or POST.", ("allow", "GET, POST"))
            if method == "GET":
                return _json(_described(self._find(name)))
            if method == "DELETE":
                return await self._unload(name)
            return refusal(405, "use GET or DELETE.", ("allow", "GET, DELETE"))
        except Refused as error:
            return refusal(error.status, str(error))

    # --- load and unload

    async def _load(self, body: bytes) -> Reply:
        name, folder = _asked(body)
        needed = await asyncio.to_thread(memory.of_files, folder)
        if name in self._loaded or name in self._loading:
            state = "loaded" if name in self._loaded else "being loaded"
            raise Refused(409, f"Model {name} is already {state}.")
        if needed > (free := self._free_bytes()):
            raise Refused(507, f"Model {name} is {needed} bytes of files; {max(free, 0)} bytes of memory are free.")
        model = _Model(name, str(folder), self._start(name, folder))
        self._loading[name] = model
        # A caller that hangs up does not end the load: SageMaker asks again, and finds the model.
        return await asyncio.shield(asyncio.ensure_future(self._finish_load(model)))

    async def _finish_load(self, model: _Model) -> Reply:
        pool = model.pool
        report = await pool.loaded
        if report is None and self._free_bytes() < 0:
            report, pool.out_of_memory = "the models hold more memory than they may.", True
        del self._loading[model.name]
        if report is not None:
            await pool.close(0)
            self._log("model not loaded", model=model.name, error=report)
            return refusal(507 if pool.out_of_memory else 500, f"Model {model.name} was not loaded: {report.rstrip()}")
        self._loaded[model.name] = model
        self._log("model loaded", model=model.name, url=model.url)
        return _json({"status": f"Model {model.name} loaded"})

    async def _unload(self, name: str) -> Reply:
        if (loading := self._loading.get(name)) is not None:
            loading.pool.cancel_loading("it was unloaded while it loaded.")
            return _json({"status": f"Model {name} unloaded"})
        model = self._find(name)
        del self._loaded[name]  # from here on it is unknown, also to a load that gives its name to another folder
        await asyncio.shield(asyncio.ensure_future(self._finish_unload(model)))
        return _json({"status": f"Model {name} unloaded"})

    async def _finish_unload(self, model: _Model) -> None:
        in_time = await model.pool.drain(self._unload_seconds)
        await model.pool.close(1 if in_time else 0)
        self._log("model unloaded", model=model.name)

    async def close(self, timeout_seconds: float) -> None:
        """End all workers."""
        for model in self._loading.values():
            model.pool.cancel_loading("the server is shutting down.")
        await asyncio.gather(*(pool.close(timeout_seconds) for pool in self.pools))

    # --- what there is

    def _find(self, name: str) -> _Model:
        if (model := self._loaded.get(name)) is None:
            raise Refused(404, f"Model not found: {name}")
        return model

    def _list(self, query: bytes) -> Reply:
        asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
        limit = _whole(asked.get("limit", [str(_PAGE)])[-1], "limit", least=1)
        first = _whole(asked.get("next_page_token", ["0"])[-1] or "0", "next_page_token", least=0)
        names = sorted(self._loaded)
        answer: dict[str, object] = {
            "models": [_described(self._loaded[name]) for name in islice(names, first, first + limit)]
        }
        if first + limit < len(names):
            answer["nextPageToken"] = str(first + limit)
        return _json(answer)

    def _free_bytes(self) -> int:
        free = memory.available()
        if self._memory_bytes:
            free = min(free, self._memory_bytes - memory.held([pid for pool in self.pools for pid in pool.pids]))
        return free


def refusal(status: int, message: str, *headers: tuple[str, str]) -> Reply:
    """An error in Multi Model Server's form."""
    fault = {"code": status, "type": _TYPES.get(status, HTTPStatus(status).phrase), "message": message}
    return _json(fault, status, headers)


def _json(value: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    return Reply(json.dumps(value).encode(), "application/json", status, list(headers))


def _described(model: _Model) -> dict[str, str]:
    return {"modelName": model.name, "modelUrl": model.url}


def _asked(body: bytes) -> tuple[str, Path]:
    """Name and folder of the model to load."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}.") from error
    if not isinstance(asked, dict):
        raise Refused(400, 'the body is no object {"model_name": ..., "url": ...}.')
    for key in ("model_name", "url"):
        if not isinstance(asked.get(key), str) or not asked[key]:
            raise Refused(400, f"the body has no {key!r}.")
    name, folder = asked["model_name"], Path(asked["url"])
    if len(name) > _NAME_CHARACTERS or "/" in name or not name.isprintable():
        raise Refused(400, f"model_name {name[:60]!r} is too long, or holds '/' or what cannot be printed.")
    try:
        usable = folder.is_absolute() and folder.is_dir()
    except (OSError, ValueError):  # a name that is too long for the file system, or holds a zero byte
        usable = False
    if not usable:
        raise Refused(400, f"url {asked['url'][:200]!r} is not the absolute path of a folder that exists.")
    return name, folder


def _whole(value: str, name: str, *, least: int) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 9 or int(value) < least:
        raise Refused(400, f"{name}={value[:40]!r} is not a whole number from {least}.")
    return int(value)
