"""One worker process: loads the model, then answers batches until the server is gone.

    python -m windlass.runtime.worker FD [CONTROL]    # started by `windlass.runtime.processes`, never by hand

FD is its end of a socket to the server. The user's code runs in the main thread of this process and nowhere else, unless the
model allows threads. What it does to the process (a crash, a deadlock, a signal handler) is undone by killing it.

| message | |
|---|---|
| -> run, id, [(body, headers)] | the next batch; it may come before the last one has been answered |
| -> stop, id | nobody waits for it any more: its callers have left, or were told that it is too late |
| -> hold, id; go on, id | the reader of what is being streamed lags behind; it has caught up |
| <- loading, where | the model is not loaded yet, and this is what it does |
| <- template | it is, and this process now waits to be forked; each fork has a socket of its own |
| <- forked, pid | the first that comes of a fork |
| <- ready, kind, batches, concurrency, why | the model is loaded: kind and why as below |
| <- failed, report, out of memory | it is not, and the process ends |
| <- replies, id, seconds, [reply] | the answers; a body of None is streamed: |
| <- chunk, id, bytes | |
| <- end, id, seconds, error | of the stream |
| <- measured, [(name, unit, value)] | what hooks have measured since the last time |

What SAGEMAKER_MODEL_SERVER_WORKERS counts is decided here, when the model is loaded and warm:

- ``thread``: the model says that it may be called from several threads at once (`engines.Loaded.threads`, or ``thread_safe =
  True`` in ``inference.py``), or WINDLASS_WORKER_KIND says it for it;
- ``fork``: else, and this process has one thread and no open file that a copy would share. OpenVINO's, OpenMP's and CUDA's
  threads do not survive a fork, and two processes that use one connection or one position in a file disturb each other.
  Through CONTROL, a second socket, the server sends an end of a new socket for each fork that it wants;
- ``spawn``: else, or WINDLASS_WORKER_KIND asks for it, or there is no CONTROL. Why is told in the log.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from windlass.runtime import engines, wire
from windlass.runtime.hooks import (
    HOOKS,
    INFERENCE_ID,
    REQUEST_ID,
    Handler,
    Invocation,
    Reply,
    chunks,
    failure,
    out_of_memory,
    user_traceback,
)
from windlass.runtime.measures import Measures
from windlass.runtime.settings import Settings

Headers = list[tuple[bytes, bytes]]
_TELL_SECONDS = 1.0
# Files that any number of processes may hold open.
_STATELESS = frozenset({"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"})


# Of this thread, where several run at once.
_running: ContextVar[Sequence[Invocation]] = ContextVar("running", default=())


class Records(logging.Handler):
    """Log records of the user's code as JSON on stderr, with the ids of the requests that are being answered."""

    def emit(self, record: logging.LogRecord) -> None:
        line: dict[str, Any] = {"time": round(record.created, 3), "event": "log", "level": record.levelname}
        line |= {"logger": record.name, "message": record.getMessage()}
        for field, name in (("request_ids", REQUEST_ID), ("inference_ids", INFERENCE_ID)):
            line[field] = [found for each in _running.get() if (found := each.headers.get(name))]
        if record.exc_info and record.exc_info[1]:
            line["error"] = user_traceback(record.exc_info[1])
        print(json.dumps(line), file=sys.stderr, flush=True)


class _Gone(Exception):
    """The server is: its end of the channel is closed."""


class _Line:
    """What this process tells the server, from one thread or several."""

    def __init__(self, channel: socket.socket, measures: Measures) -> None:
        self._channel, self._measures = channel, measures
        self._writing = threading.Lock()

    def send(self, *message: Any) -> None:
        """Raises `_Gone`, which no generator of the user's does."""
        packed = wire.pack(message)
        try:
            with self._writing:
                self._channel.sendall(packed)
        except ConnectionError as error:
            raise _Gone from error

    def replies(self, number: int, begin: float, replies: Sequence[Reply]) -> None:
        seconds = time.perf_counter() - begin
        self._measured()
        self.send("replies", number, seconds, [_plain(reply) for reply in replies])

    def stream(self, number: int, begin: float, parts: Iterator[Any], caller: _Caller) -> None:
        """Send the parts as they come, until there are no more or their caller is gone."""
        error = None
        try:
            try:
                for chunk in chunks(parts):
                    if not caller.takes_more():
                        break
                    self.send("chunk", number, chunk)
            finally:
                if (close := getattr(parts, "close", None)) is not None:
                    close()  # the generator's `finally` ends what is still being made
        except _Gone:
            raise
        except BaseException as raised:  # noqa: BLE001 - the user's code may raise anything
            error = user_traceback(raised)
        self._measured()
        self.send("end", number, time.perf_counter() - begin, error)

    def _measured(self) -> None:
        if measured := self._measures.take():
            self.send("measured", measured)


class _Caller(Protocol):
    """Those who wait for one batch, as far as the server has told."""

    def gone(self) -> bool:
        """Whether nobody waits any more."""

    def takes_more(self) -> bool:
        """Whether the next part of a stream is wanted; known when its reader has caught up."""


class _Inbox:
    """The channel, where batches run in the thread that reads it: between them, and whenever somebody asks."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._batches: deque[tuple[int, Any]] = deque()  # that have come before their time
        self._callers: dict[int, _AskedCaller] = {}
        self._reading = threading.RLock()  # hooks may ask in threads of their own
        self.closed = False

    def batch(self) -> tuple[int, Any, _AskedCaller] | None:
        """The next one, which may be a while in coming; ``None``: the other end is closed."""
        with self._reading:
            while not self._batches and not self.closed:
                self._read()
            if not self._batches:
                return None
            number, requests = self._batches.popleft()
            return number, requests, self._callers[number]

    def end(self, number: int) -> None:
        """That batch has been answered: whoever still asks is told that nobody waits."""
        with self._reading:
            self._callers.pop(number).stopped = True

    def listen(self, caller: _AskedCaller, *, wait: bool) -> bool:
        """Whether nobody waits for that caller's batch, by what has come until now; or, if it is held, until it is not."""
        if caller.stopped:
            return True  # also while `batch` waits for the next one: a thread that a hook has left behind may ask then
        with self._reading:
            while not (caller.stopped or self.closed) and ((wait and caller.held) or self._says_more()):
                self._read()
            return caller.stopped or self.closed

    def _says_more(self) -> bool:
        return bool(select.select([self._channel], [], [], 0)[0])

    def _read(self) -> None:
        if (message := wire.read(self._channel)) is None:
            self.closed = True
        elif message[0] == "run":
            self._batches.append(message[1:])
            self._callers[message[1]] = _AskedCaller(self)
        elif (caller := self._callers.get(message[1])) is not None:  # else it has ended by itself
            caller.stopped, caller.held = message[0] == "stop", message[0] == "hold"


class _AskedCaller:
    """Where the batch runs in the thread that reads the channel."""

    def __init__(self, inbox: _Inbox) -> None:
        self._inbox = inbox
        self.stopped = self.held = False

    def gone(self) -> bool:
        return self._inbox.listen(self, wait=False)

    def takes_more(self) -> bool:
        return not self._inbox.listen(self, wait=True)


class _ToldCaller:
    """Where another thread reads the channel."""

    def __init__(self) -> None:
        self._gone = False
        self._reads = threading.Event()
        self._reads.set()

    def told(self, what: str) -> None:
        if what == "hold":
            self._reads.clear()
        else:
            self._gone = self._gone or what == "stop"
            self._reads.set()

    def gone(self) -> bool:
        return self._gone

    def takes_more(self) -> bool:
        self._reads.wait()
        return not self._gone


def serve(channel: socket.socket, handler: Handler) -> None:
    """Answer batches one by one, in this thread, until the other end is closed."""
    line, inbox = _Line(channel, handler.measures), _Inbox(channel)
    while (batch := inbox.batch()) is not None:
        number, requests, caller = batch
        _answer(line, handler, number, requests, caller)
        inbox.end(number)


def serve_threads(channel: socket.socket, handler: Handler, threads: int) -> None:
    """Answer batches as they come, each in a thread, until the other end is closed."""
    line, callers = _Line(channel, handler.measures), dict[int, _ToldCaller]()

    def run(number: int, requests: Any) -> None:
        with suppress(_Gone):  # the reader below hears of it
            _answer(line, handler, number, requests, callers[number])
        del callers[number]

    with ThreadPoolExecutor(threads) as pool:
        while (message := wire.read(channel)) is not None:
            if message[0] == "run":
                callers[message[1]] = _ToldCaller()
                pool.submit(run, message[1], message[2])
            elif (caller := callers.get(message[1])) is not None:
                caller.told(message[0])
        os._exit(0)  # threads that answer nobody are not waited for


def _answer(
    line: _Line,
    handler: Handler,
    number: int,
    requests: Sequence[tuple[bytes, Headers]],
    caller: _Caller,
) -> None:
    """One batch, and the stream that its answer may be."""
    begin = time.perf_counter()
    if caller.gone():  # they have left while it waited for its turn
        line.replies(number, begin, [Reply(b"", status=499)] * len(requests))
        return
    invocations = [_invocation(body, headers, caller) for body, headers in requests]
    _running.set(invocations)
    replies = handler.answer(invocations)
    if len(replies) > 1:
        replies = [_whole(reply, caller) for reply in replies]
    line.replies(number, begin, replies)
    if (parts := replies[0].stream) is not None:
        line.stream(number, begin, parts, caller)


def _whole(reply: Reply, caller: _Caller) -> Reply:
    """Streams of one batch would have to be sent by turns; each is sent whole instead."""
    if reply.stream is None:
        return reply
    try:
        reply.body = b"".join(itertools.takewhile(lambda _: not caller.gone(), chunks(reply.stream)))
    except BaseException as error:  # noqa: BLE001 - the user's code may raise anything
        return failure(error)
    reply.stream = None
    return reply


class _Loading(threading.Thread):
    """Says every second in which line of the user's code the load is, so that the health check can."""

    def __init__(self, channel: socket.socket, code_dir: Path) -> None:
        super().__init__(daemon=True)
        self._channel, self._code = channel, str(code_dir)
        self._over, self._writing = threading.Event(), threading.Lock()

    def run(self) -> None:
        while not self._over.wait(_TELL_SECONDS):
            with self._writing:
                if (where := self._where()) and not self._over.is_set():
                    try:
                        self._channel.sendall(wire.pack(("loading", where)))
                    except OSError:  # the server is gone
                        return

    def end(self) -> None:
        """When this returns, nothing more is written by it, and its thread is no more."""
        with self._writing:
            self._over.set()
        self.join()
        while Path(f"/proc/self/task/{self.native_id}").exists():
            time.sleep(0)  # for Python it has ended, for the kernel it is about to

    def _where(self) -> str:
        frame, line = sys._current_frames().get(threading.main_thread().ident or 0), ""
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(self._code):
                line = line or f"at {Path(code.co_filename).name} line {frame.f_lineno}"
                if code.co_name in HOOKS:
                    return f"in {code.co_name}, {line}"
            frame = frame.f_back
        return line


def _level(value: str | None) -> int:
    """SageMaker gives the level as a number."""
    return int(value) if value and value.isdecimal() else logging.INFO


def _invocation(body: bytes, headers: Headers, caller: _Caller) -> Invocation:
    return Invocation(body, {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}, caller.gone)


def _plain(reply: Reply) -> tuple[Any, ...]:
    headers = [(b"content-type", reply.content_type.encode("latin-1", "replace"))]
    headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
    return reply.status, headers, None if reply.stream is not None else reply.body, reply.error


def _die_with_the_server() -> None:
    """Also in the middle of a prediction, when nobody reads the channel."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _use_cores(threads: int) -> None:
    """Let libraries use so many threads inside an operation, also those that have been told 1 while the model was loaded."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    with suppress(ImportError):  # what comes with scikit-learn; it knows OpenMP, MKL and OpenBLAS
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)


def _open_files() -> set[str]:
    return {f"{path.name}: {path.readlink()}" for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def _what_no_fork_survives(files_before: set[str]) -> str:
    """Empty where this process may be forked."""
    if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        return f"the model has {threads - 1} threads of its own, and no thread survives a fork"
    opened = {name for name in _open_files() - files_before if not name.endswith(f"/proc/{os.getpid()}/fd")}
    if names := sorted(name.partition(": ")[2] for name in opened if name.partition(": ")[2] not in _STATELESS):
        return f"the model holds open {', '.join(names[:3])}, which forks would share"
    return ""


def _be_forked(channel: socket.socket, control: socket.socket) -> socket.socket:
    """Fork as often as the server asks. Returns in the forks, with the socket of each; this process ends with the server."""
    # What is there now is never looked at by the garbage collector again, whose marks would unshare its memory.
    gc.collect()
    gc.freeze()
    server = os.getppid()
    channel.sendall(wire.pack(("template",)))
    while True:
        _, ends, _, _ = socket.recv_fds(control, 1, 1)
        if not ends:
            os._exit(0)  # the server is gone, or done with this model
        with socket.socket(fileno=ends[0]) as end:
            # Twice: the child of a child that ends is the server's own, see `processes`.
            try:
                child = os.fork()
            except (
                OSError
            ) as error:  # no memory, or too many processes: the server sees the socket closed, and tries again
                print(f"fork: {error}", file=sys.stderr, flush=True)
                continue
            if child:
                os.waitpid(child, 0)
                continue
            between = os.getpid()
            try:
                worker = os.fork()
                if worker:
                    end.sendall(wire.pack(("forked", worker)))
            except OSError as error:
                print(f"fork: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            if worker:
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0)
            _die_with_the_server()
            if os.getppid() != server:  # it has ended just now
                os._exit(0)
            control.close()
            channel.close()
            return socket.socket(fileno=os.dup(end.fileno()))


def main() -> int:
    _die_with_the_server()
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)  # a process that the user's code starts must not keep it open
    control = socket.socket(fileno=int(sys.argv[2])) if len(sys.argv) > 2 else None
    if control:
        control.set_inheritable(False)
    # The server decides when this process ends, by closing the channel. A terminal's ctrl-C goes to the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = Settings.read(os.environ)
    logging.basicConfig(level=_level(os.environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL")), handlers=[Records()])
    files = _open_files() if control else set()
    loading = _Loading(channel, settings.code_dir)
    loading.start()
    try:
        handler = Handler.load(
            settings.model_dir,
            settings.code_dir,
            settings.program,
            settings.default_accept,
            engines.Callers(
                threads=settings.threads or 0,
                workers=1 if settings.worker_kind in ("process", "spawn") else settings.workers,
                safe=settings.worker_kind == "thread",
                pinned=settings.pinned,
            ),
        )
    except BaseException as error:  # noqa: BLE001 - the user's code may raise anything, also SystemExit
        loading.end()
        channel.sendall(wire.pack(("failed", user_traceback(error), out_of_memory(error))))
        return 1
    loading.end()
    kind, why = "thread" if handler.threads > 1 else "spawn", ""
    if kind == "spawn" and control and settings.worker_kind != "spawn" and not (why := _what_no_fork_survives(files)):
        kind, channel = "fork", _be_forked(channel, control)
    if settings.threads:
        _use_cores(settings.threads)
    channel.sendall(wire.pack(("ready", kind, handler.batches, handler.concurrency, why)))
    try:
        if (threads := max(handler.threads, handler.concurrency)) > 1:
            serve_threads(channel, handler, threads)
        else:
            serve(channel, handler)
    except _Gone:
        return 0
    finally:
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    # Not by way of the interpreter's own end: threads of the user's would keep the process, or crash it.
    code = main()
    sys.stderr.flush()
    os._exit(code)
