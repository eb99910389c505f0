"""What moto keeps in memory, on disk: one file that is there again after a restart.

    snapshot = Snapshot(state / "services.pickle")
    snapshot.load()        # before the first request
    snapshot.touch()       # something has changed: it is saved within a fraction of a second
    snapshot.close()       # saves a last time

All services are in one pickle, because they refer to each other (a stack to its buckets). What grows without end is elsewhere:
metrics, logs, S3's objects and our own records are rows in SQLite. A kill loses the changes of the last moments, never more:
the file is replaced as a whole. A pickle holds the names of classes, so it is read by the moto that wrote it, or one like it.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import sys
import threading
import time
import types
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from moto.core.base_backend import BackendDict, BaseBackend

from windlass.errors import WindlassError

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.2
"""How long a change may wait to be saved."""

_SHARE = 0.05
"""The most of the server's time that saving may take; a state that takes long to save is saved less often."""

_ATTEMPTS = 20
_AFTER_FAILURE_SECONDS = 5.0


class Identity(NamedTuple):
    """Which backend: the modules that must be loaded to find it, its service, account and region."""

    ours: str
    moto: str
    service: str
    account: str
    region: str


class StateUnreadable(WindlassError, RuntimeError):
    """The state folder was written by other versions than these."""


class Snapshot:
    """The state of moto's services, and of those parts of ours that are made of objects rather than of records.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {}
        self._saving = threading.Lock()
        self._dirty, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._left_out: set[str] = set()

    def include(self, name: str, get: Callable[[], Any], put: Callable[[Any], None]) -> None:
        """Save what `get` returns, too; `put` gets it back when it is loaded."""
        self._parts[name] = (get, put)

    def touch(self) -> None:
        """Something has changed."""
        self._dirty.set()

    def start(self) -> None:
        """Save what changes from now on."""
        self._thread = threading.Thread(target=self._run, name="snapshot", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._dirty.wait()
            self._closing.wait(INTERVAL_SECONDS)
            started = time.perf_counter()
            saved = self.save()
            self._closing.wait((time.perf_counter() - started) / _SHARE if saved else _AFTER_FAILURE_SECONDS)

    def save(self) -> bool:
        """Save everything now. False: it failed, the log says why, and what was saved before is still there."""
        with self._saving:
            self._dirty.clear()
            try:
                data = self._pickled()
                draft = self._path.with_suffix(".tmp")
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(self._path)
            except Exception:
                log.exception("The state of the local cloud could not be saved")
                self._dirty.set()
                return False
            return True

    def load(self, extend: Callable[[str], None] = lambda _: None) -> None:
        """Put everything back. Nothing happens when nothing was saved.

        Args:
            extend: puts our part of a service, by moto's name, in moto's place.

        Raises:
            StateUnreadable: other versions wrote it.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            written_by: Any = None
            try:
                written_by = pickle.load(file)  # noqa: S301 - our own file, in the user's own folder
                state = _Unpickler(file, extend).load()
            except Exception as error:
                raise StateUnreadable(
                    f"The state in {self._path.parent} was written by {written_by}, and {_versions()} cannot read it"
                    f" ({type(error).__name__}: {error})",
                    where="Starting the local cloud",
                    hint="Use those versions, or give another state folder.",
                ) from error
        for identity, members in state["backends"].items():
            _backend(identity, extend).__dict__.update(members)
        for name, part in state["parts"].items():
            if name in self._parts:
                self._parts[name][1](part)

    def close(self) -> None:
        """Save a last time, and no more."""
        self._closing.set()
        self._dirty.set()
        if self._thread:
            self._thread.join(10)
            self.save()

    def _pickled(self) -> bytes:
        identities = {id(backend): identity for identity, backend in _backends()}
        known = {identity: backend for identity, backend in _backends() if identity.service not in self._left_out}
        state = {
            "backends": {identity: backend.__dict__ for identity, backend in known.items()},
            "parts": {name: get() for name, (get, _) in self._parts.items()},
        }
        try:
            return _dump(state, identities)
        except (TypeError, AttributeError, pickle.PicklingError):
            # Whose fault is it? The others are saved without it.
            for identity, backend in known.items():
                try:
                    _dump(backend.__dict__, identities)
                except (TypeError, AttributeError, pickle.PicklingError) as error:
                    self._left_out.add(identity.service)
                    log.error("The state of %s will not outlive this local cloud: %s", identity.service, error)
            if not self._left_out.intersection(identity.service for identity in known):
                raise
            return self._pickled()


def _versions() -> str:
    return f"moto {metadata.version('moto')} on Python {sys.version_info.major}.{sys.version_info.minor}"


def _backends() -> Iterator[tuple[Identity, BaseBackend]]:
    """Every backend that somebody has used."""
    for services in list(BackendDict._instances):
        modules = [kind.__module__ for kind in services.backend.__mro__]
        moto = next(name for name in modules if name.startswith("moto."))
        for account, regions in list(services.items()):
            for region, backend in list(regions.items()):
                yield Identity(modules[0], moto, services.service_name, account, region), backend


def _backend(identity: Identity, extend: Callable[[str], None]) -> Any:
    extend(identity.moto.split(".")[1])
    import_module(identity.ours)  # puts ours in the place of moto's, where it has not done so yet
    for member in vars(import_module(identity.moto)).values():
        if isinstance(member, BackendDict) and member.service_name == identity.service:
            return member[identity.account][identity.region]
    raise LookupError(f"no service {identity.service} in {identity.moto}")


def _dump(state: Any, identities: dict[int, Identity]) -> bytes:
    for attempt in range(_ATTEMPTS):
        buffer = io.BytesIO()
        pickle.dump(_versions(), buffer)
        try:
            _Pickler(buffer, identities).dump(state)
        except RuntimeError as error:
            # A request has changed a dict under our hands, as moto locks nothing.
            if attempt == _ATTEMPTS - 1 or not re.search("changed size|mutated", str(error)):
                raise
            continue
        return buffer.getvalue()
    raise AssertionError("the last attempt returns or raises")


class _Pickler(pickle.Pickler):
    """Backends are named, not copied; locks are made anew; keys and functions are taken apart."""

    def __init__(self, file: io.BytesIO, identities: dict[int, Identity]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._identities = identities

    def persistent_id(self, obj: Any) -> Identity | None:
        return self._identities.get(id(obj)) if isinstance(obj, BaseBackend) else None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _LOCKS):
            return (threading.RLock if isinstance(obj, _LOCKS[1]) else threading.Lock), ()
        if isinstance(obj, weakref.WeakValueDictionary):
            return weakref.WeakValueDictionary, (dict(obj),)
        if isinstance(obj, RSAPrivateKey | EllipticCurvePrivateKey):
            encoding, form = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
            return _private_key, (obj.private_bytes(encoding, form, serialization.NoEncryption()),)
        if isinstance(obj, OrderedDict | defaultdict) and type(obj).__init__ not in _PLAIN:
            factory = obj.default_factory if isinstance(obj, defaultdict) else None
            return _mapping, (type(obj), factory), obj.__dict__, None, iter(obj.items())
        if isinstance(obj, types.FunctionType) and "<" in obj.__qualname__:
            if obj.__closure__:
                raise pickle.PicklingError(f"{obj.__qualname__} refers to the variables around it")
            return _inner_function, (obj.__module__, obj.__qualname__, obj.__code__.co_firstlineno)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, extend: Callable[[str], None]) -> None:
        super().__init__(file)
        self._extend = extend

    def persistent_load(self, identity: Identity) -> Any:
        return _backend(Identity(*identity), self._extend)


_LOCKS = (type(threading.Lock()), type(threading.RLock()))


_PLAIN = (OrderedDict.__init__, defaultdict.__init__)


def _mapping(kind: Any, factory: Any) -> Any:
    """One whose own __init__ asks for more than a pickle would give it."""
    made = kind.__new__(kind)
    if issubclass(kind, defaultdict):
        defaultdict.__init__(made, factory)
    else:
        OrderedDict.__init__(made)
    return made


def _private_key(data: bytes) -> Any:
    return serialization.load_der_private_key(data, password=None)


def _inner_function(module: str, qualname: str, line: int) -> Any:
    """``SomeBackend.__init__.<locals>.<lambda>``: a function that only its outer function can name."""
    outer, *inner = qualname.split(".<locals>.")
    code: Any = import_module(module)
    for name in outer.split("."):
        code = code.__dict__[name]
    code = code.__code__
    for name in inner:
        found = [each for each in code.co_consts if isinstance(each, types.CodeType) and each.co_name == name]
        code = next((each for each in found if each.co_firstlineno == line), found[0])
    return types.FunctionType(code, import_module(module).__dict__)
