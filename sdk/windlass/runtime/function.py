"""Runs a Lambda function's handler, again and again: ``python -m windlass.runtime.function``.

It connects to the Unix socket ``WINDLASS_FUNCTION_SOCKET``, loads ``_HANDLER`` from ``LAMBDA_TASK_ROOT``, and answers each
event that comes over the socket with what the handler returns or how it failed. What the handler prints goes to the log. This
module uses the standard library alone, so that a function starts at once.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LENGTH = struct.Struct(">I")

END_MARK = "\0END "
"""Before a request's id on stdout: what comes after it belongs to the next event."""

Handler = Callable[[Any, Any], Any]


@dataclass
class Context:
    """The second argument of a handler, with AWS's names."""

    aws_request_id: str
    invoked_function_arn: str
    function_name: str
    function_version: str
    memory_limit_in_mb: str
    log_group_name: str
    log_stream_name: str
    deadline: float = field(repr=False, default=0.0)
    identity: Any = None
    client_context: Any = None

    def get_remaining_time_in_millis(self) -> int:
        """Until the function is ended."""
        return max(0, int((self.deadline - time.time()) * 1000))

    def log(self, message: object) -> None:
        """Print it without a line's end, as AWS does."""
        sys.stdout.write(str(message))


def receive(stream: socket.socket) -> dict[str, Any] | None:
    """The next message; None when the other side is gone."""
    head = _exactly(stream, LENGTH.size)
    body = _exactly(stream, LENGTH.unpack(head)[0]) if head else b""
    return json.loads(body) if body else None


def send(stream: socket.socket, message: Mapping[str, Any]) -> None:
    """One message, which `receive` reads on the other side."""
    body = json.dumps(message).encode()
    stream.sendall(LENGTH.pack(len(body)) + body)


def _exactly(stream: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = stream.recv(min(size - len(data), 1 << 20))
        if not chunk:
            return b""
        data += chunk
    return bytes(data)


class _Broken(Exception):
    """The function cannot be loaded; `error` is AWS's answer to every event."""

    def __init__(self, kind: str, message: str, trace: list[str] | None = None) -> None:
        super().__init__(message)
        self.error = {"errorMessage": message, "errorType": kind, "requestId": "", "stackTrace": trace or []}


def load(name: str) -> Handler:
    """The function that ``module.function`` or ``folder/module.function`` names. Raises _Broken as AWS words it."""
    module_name, dot, function_name = name.rpartition(".")
    if not dot:
        raise _Broken("Runtime.MalformedHandlerName", f"Bad handler '{name}': not enough values to unpack")
    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        raise _Broken("Runtime.ImportModuleError", f"Unable to import module '{module_name}': {error}") from error
    except SyntaxError as error:
        message = f"Syntax error in module '{module_name}': {error}"
        raise _Broken("Runtime.UserCodeSyntaxError", message, traceback.format_exception_only(error)) from error
    if not hasattr(module, function_name):
        raise _Broken("Runtime.HandlerNotFound", f"Handler '{function_name}' missing on module '{module_name}'")
    handler: Handler = getattr(module, function_name)
    return handler


def answer(handler: Handler, event: str, context: Context) -> tuple[str, bool]:
    """(the payload, whether the function failed) for one event, which is JSON."""
    try:
        result = handler(json.loads(event), context)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises is its answer
        return json.dumps(failure(error, context.aws_request_id)), True
    try:
        return json.dumps(result), False
    except (TypeError, ValueError) as error:
        return json.dumps(
            {
                "errorMessage": f"Unable to marshal response: {error}",
                "errorType": "Runtime.MarshalError",
                "requestId": context.aws_request_id,
                "stackTrace": [],
            }
        ), True


def failure(error: BaseException, request_id: str) -> dict[str, Any]:
    """What AWS answers for an exception; its traceback goes to the log."""
    # The first frame is ours.
    frames = traceback.format_list(traceback.extract_tb(error.__traceback__)[1:])
    kind = type(error).__name__
    shown = "".join(frames)
    sys.stdout.write(f"[ERROR] {kind}: {error}\nTraceback (most recent call last):\n{shown}")
    return {"errorMessage": str(error), "errorType": kind, "requestId": request_id, "stackTrace": frames}


def main() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.connect(os.environ.pop("WINDLASS_FUNCTION_SOCKET"))
        sys.path.insert(0, os.environ["LAMBDA_TASK_ROOT"])
        handler: Handler | None = None
        broken: dict[str, Any] | None = None
        try:
            handler = load(os.environ["_HANDLER"])
        except _Broken as error:
            broken = error.error
            sys.stdout.write(f"[ERROR] {broken['errorType']}: {broken['errorMessage']}\n")
        except Exception as error:  # noqa: BLE001 - raised by the user's module while it is imported
            broken = failure(error, "")
        send(stream, {"ready": True})
        while (message := receive(stream)) is not None:
            context = Context(**message["context"])
            if handler is None:
                payload, failed = json.dumps({**(broken or {}), "requestId": context.aws_request_id}), True
            else:
                payload, failed = answer(handler, message["event"], context)
            for output in (sys.stdout, sys.stderr):
                output.flush()
            os.write(1, f"{END_MARK}{context.aws_request_id}\n".encode())
            send(stream, {"payload": payload, "failed": failed})


if __name__ == "__main__":
    main()
