"""The local cloud's HTTP side: which request goes where, errors that AWS clients understand, and a clean end.

    server = Server(state, port=0)
    print(server.url)
    server.run()          # until stop(), from another thread or a signal handler

Behind it stands moto's own application, which finds the service from the signature of a request. In front of that: the data
plane of endpoints, the admin path, and a guard against web pages (whoever can reach this API can run programs here).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

# moto reads these when it is imported. A page in a browser must not get CORS headers that let it call this API.
os.environ.setdefault("MOTO_DISABLE_GLOBAL_CORS", "true")
os.environ.setdefault("MOTO_ALLOW_NONEXISTENT_REGION", "false")

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import ThreadedWSGIServer

from windlass.local import cloud as clouds
from windlass.local.clock import Clock
from windlass.local.cloudwatch import api as cloudwatch
from windlass.local.faults import Fault
from windlass.local.iam import authorizer
from windlass.local.iam.authorizer import Denied, requested_by
from windlass.local.refusals import Refusal, refused
from windlass.local.storage import s3
from windlass.local.storage.bodies import Body, Refused

log = logging.getLogger(__name__)

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "host.docker.internal")
ADMIN_PATHS = b"""Admin paths:
GET /_windlass/health
POST /_windlass/stop
POST /_windlass/policy/mark
GET /_windlass/policy?principal=ARN
POST /_windlass/training-jobs/NAME/interrupt?capacity_after_seconds=0
"""
_READS = ("Describe", "List", "Get", "BatchGet", "Filter", "Query", "Scan", "Lookup", "Test")
NOT_IMPLEMENTED = "UnknownOperationException"


class Application(DomainDispatcherApplication):  # type: ignore[misc]
    """The WSGI application of one local cloud."""

    @functools.cache  # noqa: B019 - lives as long as the process; moto lists its own folder for each request
    def get_backend_for_host(self, host: str | None) -> Any:
        backend = super().get_backend_for_host(host)
        if backend is None and str(host).endswith("amazonaws.com"):
            raise NotImplementedError(f"moto knows no service at {host}")
        return backend

    def __init__(self, cloud: clouds.Cloud, stop: Callable[[], None]) -> None:
        super().__init__(_create_app)
        self.cloud = cloud
        self.stop = stop

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        try:
            if refusal := _foreign(environ):
                return _answer(start_response, 403, "text/plain", refusal.encode())
            if path.startswith("/_windlass/"):
                return self._admin(environ, start_response)
            if self.cloud.authorizer.watching and not path.startswith("/moto-api/"):
                with requested_by(self.cloud.authorizer.admit(environ)):
                    return self._serve(environ, start_response)
            return self._serve(environ, start_response)
        except Denied as denial:
            return _denied(environ, start_response, denial)
        except Refused as refusal:
            return _fault(environ, start_response, 400, refusal.code, refusal.message)
        except NotImplementedError as error:
            # moto's answer would be an HTML page with status 500, which botocore retries.
            log.info("Refused %s: %s", _operation(environ), error)
            why = f": it {error}" if isinstance(error, Refusal) else ""
            message = f"The local cloud does not implement {_operation(environ)}{why}."
            return _fault(environ, start_response, 400, NOT_IMPLEMENTED, message)
        except Exception as error:
            log.exception("%s %s (%s) failed", environ.get("REQUEST_METHOD"), path, _operation(environ))
            message = f"{_operation(environ)} failed inside the local cloud: {type(error).__name__}: {error}"
            return _fault(environ, start_response, 500, "InternalFailure", message)

    def _serve(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path.startswith("/endpoints/") and "invocations" in path:
            return self.cloud.hosting.invoke(environ, start_response)
        if done := cloudwatch.put_at_once(self.cloud, environ):
            return _answer(start_response, 200, *done, [("x-amzn-RequestId", str(uuid.uuid4()))])
        if path == "/moto-api/reset" and environ["REQUEST_METHOD"] == "POST":
            self.cloud.reset()
        service = _service(environ)
        if why := refused(service, environ):
            raise Refusal(why)
        if service == "s3":
            return s3.serve(super().__call__, environ, start_response)  # saves by itself
        answer: Iterable[bytes] = super().__call__(environ, start_response)
        if service != "sagemaker" and not _only_reads(environ):
            self.cloud.snapshot.touch()
        return answer

    def _admin(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        what = (environ["REQUEST_METHOD"], environ["PATH_INFO"].removeprefix("/_windlass/"))
        if what == ("GET", "health"):
            facts = {
                "pid": os.getpid(),
                "state": str(self.cloud.state),
                "url": self.cloud.url,
                "speed": self.cloud.pace.speed,
            }
            return _answer(start_response, 200, "application/json", json.dumps(facts).encode())
        if what == ("POST", "stop"):
            threading.Timer(0.05, self.stop).start()
            return _answer(start_response, 200, "application/json", b"{}")
        if what == ("POST", "policy/mark"):
            self.cloud.authorizer.mark()
            return _answer(start_response, 200, "application/json", b"{}")
        if what == ("GET", "policy"):
            return self._policy(environ, start_response)
        if what[0] == "POST" and (named := re.fullmatch(r"training-jobs/([^/]+)/interrupt", what[1])):
            query = dict(parse_qsl(environ.get("QUERY_STRING", "")))
            try:
                after = float(query.get("capacity_after_seconds", 0))
                self.cloud.jobs.interrupt(named[1], region=query.get("region"), capacity_after_seconds=after)
            except (Fault, ValueError) as error:
                message = error.message if isinstance(error, Fault) else str(error)
                return _answer(start_response, 400, "application/json", json.dumps({"message": message}).encode())
            return _answer(start_response, 200, "application/json", b"{}")
        return _answer(start_response, 404, "text/plain", ADMIN_PATHS)

    def _policy(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The least policy for what was called since the mark: by clients, or by one principal."""
        from windlass.local.iam import least

        principal = dict(parse_qsl(environ.get("QUERY_STRING", ""))).get("principal")
        seen = self.cloud.authorizer.seen()
        if seen is None:
            body = {"message": "There is no mark to count from"}
            return _answer(start_response, 409, "application/json", json.dumps(body).encode())
        chosen = [each for each in seen if each.principal == principal or (principal is None and not each.of_service)]
        return _answer(start_response, 200, "application/json", json.dumps(least.policy(chosen)).encode())


class Server:
    """One local cloud, listening. Nothing is served before ``run()``, but the port is taken.

    Args:
        state: the folder of this cloud's state.
        port: 0 takes a free one.
        speed: how many times faster alarm periods, bakes and schedules run.
        enforce_iam: refuse what no policy allows.

    Raises:
        OSError: the port is taken.
    """

    def __init__(
        self,
        state: Path,
        port: int = 0,
        host: str = "127.0.0.1",
        clock: Clock | None = None,
        speed: float = 1,
        enforce_iam: bool = False,
    ) -> None:
        listener = socket.create_server((host, port), backlog=128)
        self.url = f"http://{host}:{listener.getsockname()[1]}"
        os.environ["MOTO_PORT"] = str(listener.getsockname()[1])
        self.cloud = clouds.Cloud(state, self.url, clock, speed, enforce_iam)
        clouds.install(self.cloud)
        authorizer.install(self.cloud.authorizer)
        _extend_moto(self.cloud)
        self.cloud.restore(_extend_late)
        self._http = _HttpServer(host, listener, Application(self.cloud, self.stop))

    def run(self) -> None:
        """Serve until ``stop()``, then end every child."""
        try:
            self._http.serve_forever(poll_interval=0.05)
        finally:
            self._http.server_close()
            self.cloud.close()

    def stop(self) -> None:
        """Make ``run()`` return. Safe from any thread, and from a signal handler."""
        # shutdown() waits for the serving thread, which a signal handler runs on.
        threading.Thread(target=self._http.shutdown, daemon=True).start()


class _HttpServer(ThreadedWSGIServer):  # type: ignore[misc]
    """werkzeug's threaded server on a socket that is bound already."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, listener: socket.socket, application: Application) -> None:
        port = listener.getsockname()[1]
        super().__init__(host, port, application, handler=_Handler, fd=listener.detach())

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            log.exception("A connection from %s failed", client_address)


class _Handler(MotoRequestHandler):  # type: ignore[misc]
    """Requests over connections that are kept: boto3 pools them, and a prediction should not pay for a new one.

    werkzeug closes every connection, because http.server does not drain an unread body. This one does.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    timeout = 300

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        self.wfile.flush()  # the client waits for it, and what we write is buffered
        return True

    def run_wsgi(self) -> None:
        environ = self.make_environ()
        chunked = bool(environ.get("wsgi.input_terminated"))
        if chunked:
            self.close_connection = True
        else:
            body = _Body(self.rfile, int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = body
        started: list[Any] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], None]:
            if exc_info and self._sent:
                raise exc_info[1].with_traceback(exc_info[2])
            started[:] = [status, headers]
            return write

        def write(data: bytes) -> None:
            self._send(started[0], started[1], data, environ["REQUEST_METHOD"], None)

        self._sent = self._chunking = False
        answer: Iterable[bytes] = ()
        try:
            answer = self.server.app(environ, start_response)
            # A whole body in one piece gets a length; what streams is sent as it comes.
            length = sum(map(len, answer)) if isinstance(answer, list | tuple) else None
            if isinstance(answer, Body):
                self._send(started[0], started[1], b"", environ["REQUEST_METHOD"], len(answer))
                self.wfile.flush()
                answer.send(self.connection)
            else:
                for data in answer:
                    self._send(started[0], started[1], data, environ["REQUEST_METHOD"], length)
            if not self._sent:
                self._send(started[0], started[1], b"", environ["REQUEST_METHOD"], length or 0)
            if self._chunking:
                self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
            if not chunked and not body.drain():
                self.close_connection = True
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            # The headers are out, or the application broke its own contract: nothing sensible can be said on this line.
            self.close_connection = True
            log.exception("%s %s broke off", self.command, self.path)
        finally:
            close = getattr(answer, "close", None)
            if close:
                close()

    def _send(self, status: str, headers: list[tuple[str, str]], data: bytes, method: str, length: int | None) -> None:
        if not self._sent:
            self._sent = True
            code, _, reason = status.partition(" ")
            self.send_response(int(code), reason)
            names = {name.lower() for name, _ in headers}
            for name, value in headers:
                self.send_header(name, value)
            bodyless = method == "HEAD" or int(code) < 200 or int(code) in (204, 304)
            if "content-length" not in names and not bodyless:
                if length is None:
                    self._chunking = True
                    self.send_header("Transfer-Encoding", "chunked")
                else:
                    self.send_header("Content-Length", str(length))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
        if data:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if self._chunking else data)
            if self._chunking:
                self.wfile.flush()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        log.debug("%s %s %s", self.command, self.path, code)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.info(format, *args)


class _Body:
    """The body of one request: reads end where it does, and the rest can be thrown away."""

    def __init__(self, stream: Any, length: int) -> None:
        self._stream, self._left = stream, length

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(self._left if size is None or size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:
        count: int = self._stream.readinto(memoryview(buffer)[: self._left])
        self._left -= count
        return count

    def readline(self, size: int = -1) -> bytes:
        data: bytes = self._stream.readline(self._left if size is None or size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def readlines(self, hint: int = -1) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def drain(self, limit: int = 1 << 20) -> bool:
        """Whether the connection can be used again: nothing of the body is left on it, or little enough to read it."""
        if self._left <= limit:
            while self._left and self.read(1 << 16):
                pass
        return self._left == 0


def _create_app(service: str) -> Any:
    """moto makes one application for each service, at its first request."""
    _extend_late(service)
    return create_backend_app(service)


def _extend_late(service: str) -> None:
    """Put our part of that service in moto's place: those that take a while to load wait until somebody needs them."""
    if service in ("lambda", "awslambda", "cloudformation"):
        from windlass.local.events import functions

        functions.register(clouds.current().functions)
    if service == "applicationautoscaling":
        from windlass.local.events import scaling

        scaling.register(clouds.current().scaling)
    if service == "cloudformation":
        import windlass.local.cloudformation.api  # noqa: F401 - replaces moto's; takes a second that few sessions need to spend


def _extend_moto(cloud: clouds.Cloud) -> None:
    """Put our parts in moto's place, before its first request."""
    from windlass.local import sagemaker
    from windlass.local.events import notifications
    from windlass.local.iam import records
    from windlass.local.storage import bucket_policy

    records.register()
    bucket_policy.register(cloud.authorizer)
    s3.register()
    notifications.register(cloud.events, lambda *given: cloud.functions.deliver(*given))
    cloudwatch.register(cloud)
    sagemaker.register(cloud)


def _foreign(environ: Environ) -> str:
    """Why a request must be refused that a web page made; empty for all others.

    A page cannot set X-Amz-Target without a preflight, but a plain form is enough for the query protocol, and a name that
    resolves to 127.0.0.1 ("DNS rebinding") for everything.
    """
    host = environ.get("HTTP_HOST", "")
    name = host if host.startswith("[") and host.endswith("]") else host.rpartition(":")[0] or host
    if name and not (
        name in LOCAL_HOSTS or name.endswith((".localhost", ".amazonaws.com", ".localhost.localstack.cloud"))
    ):
        return f"The local cloud does not answer to the host name '{name}'. Use 127.0.0.1 or localhost.\n"
    origin = environ.get("HTTP_ORIGIN", "")
    if origin and urlsplit(origin).netloc != host:
        return f"The local cloud does not answer web pages of another origin ('{origin}').\n"
    return ""


def _operation(environ: Environ) -> str:
    """``SageMaker.CreateCluster``, as well as the request tells it."""
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return str(target)
    return f"{_service(environ)} {environ.get('REQUEST_METHOD')} {environ.get('PATH_INFO')}"


def _only_reads(environ: Environ) -> bool:
    """Whether it surely changes nothing that the snapshot holds. The query protocol names its operation in the body only."""
    if environ["REQUEST_METHOD"] in ("GET", "HEAD", "OPTIONS"):
        return True
    operation = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2] or environ["PATH_INFO"].rpartition("/")[2]
    return operation.startswith(_READS) or operation in ("PutMetricData", "PutLogEvents")  # those are rows in SQLite


def _service(environ: Environ) -> str:
    scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition(",")[0].split("/")
    return scope[3] if len(scope) == 5 else "s3"


# By what a request speaks (S3, the query protocol, JSON): code and status of each kind of denial.
_DENIALS: dict[str, tuple[tuple[str, int], tuple[str, int], tuple[str, int]]] = {
    "denied": (("AccessDenied", 403), ("AccessDenied", 403), ("AccessDeniedException", 400)),
    "unknown key": (("InvalidAccessKeyId", 403), ("InvalidClientTokenId", 403), ("UnrecognizedClientException", 400)),
    "expired": (("ExpiredToken", 400), ("ExpiredToken", 403), ("ExpiredTokenException", 400)),
    "no signature": (
        ("AccessDenied", 403),
        ("MissingAuthenticationToken", 403),
        ("MissingAuthenticationTokenException", 400),
    ),
    "bad signature": (
        ("SignatureDoesNotMatch", 403),
        ("SignatureDoesNotMatch", 403),
        ("InvalidSignatureException", 400),
    ),
}
_QUERY_COMPATIBLE = ("monitoring", "sqs")  # over JSON, their clients still hear the query protocol's codes


def _denied(environ: Environ, start_response: StartResponse, denial: Denied) -> Iterable[bytes]:
    service, target = _service(environ), environ.get("HTTP_X_AMZ_TARGET")
    of_s3, of_query, of_json = _DENIALS[denial.reason]
    if service == "s3":
        return _fault(environ, start_response, of_s3[1], of_s3[0], str(denial))
    form = environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded")
    if form or service in _QUERY_COMPATIBLE:
        code = "AuthorizationError" if service == "sns" and denial.reason == "denied" else of_query[0]
        return _fault(environ, start_response, of_query[1], code, str(denial))
    code, status = of_json
    if not target and denial.reason != "expired":
        status = 403  # REST services
    return _fault(environ, start_response, status, code, str(denial))


def _fault(environ: Environ, start_response: StartResponse, status: int, code: str, message: str) -> Iterable[bytes]:
    """An error in the protocol of the request, so that every client raises it as its own."""
    extra = [("x-amzn-errortype", code)]
    if environ.get("HTTP_SMITHY_PROTOCOL") == "rpc-v2-cbor":
        body = b"\xa2" + b"".join(_cbor_text(text) for text in ("__type", code, "message", message))
        return _answer(start_response, status, "application/cbor", body, [*extra, ("smithy-protocol", "rpc-v2-cbor")])
    if _service(environ) == "s3":
        page = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{_xml(message)}</Message></Error>"
        return _answer(start_response, status, "application/xml", page.encode(), extra)
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        side = "Sender" if status < 500 else "Receiver"
        error = f"<Error><Type>{side}</Type><Code>{code}</Code><Message>{_xml(message)}</Message></Error>"
        page = f"<ErrorResponse>{error}<RequestId>local</RequestId></ErrorResponse>"
        return _answer(start_response, status, "text/xml", page.encode(), extra)
    body = json.dumps({"__type": code, "message": message}).encode()
    return _answer(start_response, status, "application/x-amz-json-1.1", body, extra)


def _xml(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cbor_text(text: str) -> bytes:
    data = text.encode()
    return b"\x79" + len(data).to_bytes(2, "big") + data if len(data) < 1 << 16 else _cbor_text(text[:16000])


def _answer(
    start_response: StartResponse, status: int, kind: str, body: bytes, headers: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    phrase = HTTPStatus(status).phrase
    start_response(f"{status} {phrase}", [("Content-Type", kind), ("Content-Length", str(len(body))), *headers])
    return [body]


def write_record(state: Path, url: str) -> Path:
    """``cloud.json`` in the state folder: how ``LocalCloud.find`` finds a running one."""
    path = state / "cloud.json"
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    draft.replace(path)
    return path


@contextlib.contextmanager
def claimed(state: Path) -> Iterator[None]:
    """Hold the state folder for this process. Raises BlockingIOError when another local cloud has it."""
    import fcntl

    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
