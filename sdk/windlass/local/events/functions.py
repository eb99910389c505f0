"""Lambda functions that run: Python code as processes of this machine.

    functions = Functions(cloud)
    outcome = functions.invoke(function, event)              # waits, as RequestResponse does
    functions.invoke_later(function, event)                  # as Event does: retries, then the on-failure destination

Records (functions, versions, aliases, policies) are moto's; what runs them, and what is refused because it could not run, is
here. The process itself is in `sandbox.py`.
"""

from __future__ import annotations

import base64
import fnmatch
import io
import json
import logging
import shutil
import threading
import uuid
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from moto.awslambda import urls
from moto.awslambda.exceptions import UnknownFunctionException
from moto.awslambda.models import LambdaBackend, LambdaFunction, lambda_backends
from moto.core.exceptions import ServiceException

from windlass.local import roles, storage, validation
from windlass.local.clock import Clock
from windlass.local.cloud import ACCOUNT
from windlass.local.cloudwatch.alarm_settings import Alarm
from windlass.local.cloudwatch.alarms import Change
from windlass.local.cloudwatch.logs import LogStream
from windlass.local.cloudwatch.metric_store import Datum, Metric, MetricStore
from windlass.local.events.bus import EventBus, Undeliverable
from windlass.local.events.sandbox import FunctionSpec, Outcome, Sandbox
from windlass.local.faults import Fault
from windlass.local.iam import principals
from windlass.local.iam.authorizer import acting_as, as_role
from windlass.local.processes import Keeper

log = logging.getLogger(__name__)

RETRY_SECONDS = (60, 120)
"""AWS waits a minute before the second attempt of an asynchronous invocation, and two before the third."""

IDLE_SECONDS = 120.0
_MOST_AT_ONCE = 16
_SYNC_BYTES, _ASYNC_BYTES = 6 * 1024 * 1024, 1024 * 1024
_LONGEST_SECONDS = 900
_UNZIPPED_BYTES = 250 * 1024 * 1024
_TAIL_BYTES = 4096
_NAMESPACE = "AWS/Lambda"

# The developer guide's "Reserved environment variables".
_RESERVED = frozenset(
    "_HANDLER _X_AMZN_TRACE_ID AWS_DEFAULT_REGION AWS_REGION AWS_EXECUTION_ENV AWS_LAMBDA_FUNCTION_NAME "
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE AWS_LAMBDA_FUNCTION_VERSION AWS_LAMBDA_INITIALIZATION_TYPE "
    "AWS_LAMBDA_LOG_GROUP_NAME AWS_LAMBDA_LOG_STREAM_NAME AWS_ACCESS_KEY AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY "
    "AWS_SESSION_TOKEN AWS_LAMBDA_RUNTIME_API LAMBDA_TASK_ROOT LAMBDA_RUNTIME_DIR".split()
)


class HasFunctions(Protocol):
    """What functions need of the local cloud."""

    @property
    def state(self) -> Path: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def keeper(self) -> Keeper: ...
    @property
    def metrics(self) -> MetricStore: ...
    @property
    def events(self) -> EventBus: ...
    def process_environment(self, region: str) -> dict[str, str]: ...


@dataclass(frozen=True)
class _Attempt:
    """One asynchronous invocation on its way."""

    arn: str
    event: str
    request_id: str
    since: float
    number: int = 1


class Functions:
    """All functions' processes of a local cloud. Safe to use from many threads."""

    def __init__(self, cloud: HasFunctions) -> None:
        self._cloud = cloud
        self._lock = threading.Condition()
        self._idle: list[Sandbox] = []
        self._busy: list[Sandbox] = []
        self._waiting = 0
        self._workers: ThreadPoolExecutor | None = None
        self._closing = threading.Event()
        self._reaper: threading.Thread | None = None

    # -- one invocation -------------------------------------------------------------------------------------------------

    def invoke(self, function: LocalFunction, event: str, request_id: str | None = None) -> Outcome:
        """Run it, and wait for what it answers. Raises AWS's fault when its concurrency is used up."""
        spec = self._spec(function)
        sandbox = self._acquire(function, spec)
        try:
            outcome = sandbox.invoke(event or "{}", request_id or str(uuid.uuid4()))
        finally:
            self._release(sandbox)
        self._measure(function, Invocations=1, Errors=float(outcome.failed), Duration=outcome.seconds * 1000)
        return outcome

    def _acquire(self, function: LocalFunction, spec: FunctionSpec) -> Sandbox:
        limit = function.reserved_concurrency
        with self._lock:
            if limit is not None and sum(each.spec.name == spec.name for each in self._busy) >= int(limit):
                self._measure(function, Throttles=1)
                raise Fault("TooManyRequestsException", "Rate Exceeded.")
            outdated = [each for each in self._idle if each.spec.arn == spec.arn and each.spec.key != spec.key]
            fitting = [each for each in self._idle if each.spec.key == spec.key and each.alive]
            for each in outdated + fitting[:1]:
                self._idle.remove(each)
            if fitting:
                self._busy.append(fitting[0])
        for each in outdated:
            each.stop()
        if fitting:
            return fitting[0]
        region = function.region
        sandbox = Sandbox(
            spec,
            self._unpacked(function),
            keeper=self._cloud.keeper,
            open_log=as_role(
                function.role,
                lambda stream: LogStream(region, spec.log_group, stream, self._cloud.clock).write,
                function.function_name,
            ),
        )
        with self._lock:
            self._busy.append(sandbox)
            if self._reaper is None:
                self._reaper = threading.Thread(target=self._reap, name="functions", daemon=True)
                self._reaper.start()
        return sandbox

    def _release(self, sandbox: Sandbox) -> None:
        with self._lock:
            self._busy.remove(sandbox)
            keep = sandbox.alive and not self._closing.is_set()
            if keep:
                self._idle.append(sandbox)
        if not keep:
            sandbox.stop()

    def _reap(self) -> None:
        """End what has been idle for long."""
        while not self._closing.wait(IDLE_SECONDS / 10):
            self.end(lambda sandbox: sandbox.idle_seconds > IDLE_SECONDS)

    def end(self, which: Any) -> None:
        """End the idle processes that `which` is true of."""
        with self._lock:
            chosen = [sandbox for sandbox in self._idle if which(sandbox)]
            self._idle = [sandbox for sandbox in self._idle if sandbox not in chosen]
        for sandbox in chosen:
            sandbox.stop()

    def _unpacked(self, function: LocalFunction) -> Path:
        """The folder of the function's code; one for all functions of the same code."""
        folder: Path = self._cloud.state / "functions" / function.code_digest
        with self._lock:
            if not folder.exists():
                draft = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
                with zipfile.ZipFile(io.BytesIO(function.code_bytes)) as archive:
                    archive.extractall(draft)  # zipfile keeps members inside of the folder
                draft.rename(folder)
        return folder

    def _spec(self, function: LocalFunction) -> FunctionSpec:
        variables = dict(function.environment_vars)
        base = (function.function_arn, function.code_sha_256, function.handler, function.role, function.timeout)
        key = (*base, function.memory_size, tuple(sorted(variables.items())))
        return FunctionSpec(
            name=function.function_name,
            arn=function.function_arn,
            version=str(function.version),
            handler=function.handler,
            timeout_seconds=float(function.timeout),
            memory_mib=int(function.memory_size),
            environment={
                **self._cloud.process_environment(function.region),
                **variables,
                **function.credentials(),
            },
            log_group=function.logs_group_name,
            key=key,
        )

    def _measure(self, function: LocalFunction, **values: float) -> None:
        units = {"Duration": "Milliseconds"}
        now = self._cloud.clock.now()
        self._cloud.metrics.put_many(
            function.region,
            [
                Datum(
                    Metric.of(_NAMESPACE, name, {"FunctionName": function.function_name}),
                    now,
                    samples=((value, 1.0),),
                    unit=units.get(name, "Count"),
                )
                for name, value in values.items()
            ],
        )

    # -- asynchronous invocations -----------------------------------------------------------------------------------------

    def invoke_later(self, function: LocalFunction, event: str, request_id: str | None = None) -> str:
        """Run it soon, again when it fails, and tell its destinations; returns the request's id."""
        attempt = _Attempt(function.function_arn, event, request_id or str(uuid.uuid4()), self._cloud.events.pace.now())
        self._submit(attempt)
        return attempt.request_id

    def deliver(self, arn: str, event: str, principal: str, source: str) -> None:
        """An event from another service to the function of that ARN. Raises Undeliverable when it is gone or forbids it."""
        function = find(arn)
        if function is not None and not function.permits(principal, source):
            raise Undeliverable(f"the policy of the function {arn} does not let {principal} invoke it for {source}")
        self.deliver_freely(arn, event)

    def deliver_freely(self, arn: str, event: str) -> None:
        """An event of another function, whose role says that it may. Raises Undeliverable when the function is gone."""
        function = find(arn)
        if function is None:
            raise Undeliverable(f"the function {arn} does not exist")
        self.invoke_later(function, event)

    def target(self, target: Mapping[str, Any], text: str, event: Mapping[str, Any]) -> None:
        """What EventBridge does with a function that is a target of a rule, or a destination of another function."""
        if rule := target["RuleArn"]:
            self.deliver(target["Arn"], text, "events.amazonaws.com", rule)
        else:
            self.deliver_freely(target["Arn"], text)

    def act(self, alarm: Alarm, action: str, change: Change) -> None:
        """What an alarm does with a function that is its action."""
        payload = {
            "source": "aws.cloudwatch",
            "alarmArn": alarm.arn,
            "accountId": ACCOUNT,
            "time": change.time,
            "region": alarm.region,
            "alarmData": change.detail,
        }
        self.deliver(action, json.dumps(payload), "lambda.alarms.cloudwatch.amazonaws.com", alarm.arn)

    def _submit(self, attempt: _Attempt) -> None:
        with self._lock:
            if self._closing.is_set():
                return
            if self._workers is None:
                self._workers = ThreadPoolExecutor(_MOST_AT_ONCE, "function")
            self._waiting += 1
            self._workers.submit(self._attempt, attempt)

    def _attempt(self, attempt: _Attempt) -> None:
        try:
            function = find(attempt.arn)
            if function is not None:  # or else it was deleted meanwhile, and its events with it
                self._try(function, attempt)
        except Exception:
            # A thread of the pool would swallow it.
            log.exception("The asynchronous invocation %s of %s failed", attempt.request_id, attempt.arn)
        finally:
            with self._lock:
                self._waiting -= 1
                self._lock.notify_all()

    def _try(self, function: LocalFunction, attempt: _Attempt) -> None:
        config = function.event_invoke_config[-1].config if function.event_invoke_config else {}
        events, age = self._cloud.events, self._cloud.events.pace.now() - attempt.since
        try:
            outcome = self.invoke(function, attempt.event, attempt.request_id)
        except Fault as fault:
            # Too many at once: AWS tries again until the event is too old.
            if age < config.get("MaximumEventAgeInSeconds", 21_600):
                events.agenda.after(RETRY_SECONDS[0], partial(self._submit, attempt))
                return
            outcome = Outcome(json.dumps({"errorMessage": fault.message}), failed=True, seconds=0, log="")
        if not outcome.failed:
            self._tell(function, attempt, outcome, "OnSuccess", "Success", config)
            return
        retries = config.get("MaximumRetryAttempts", len(RETRY_SECONDS))
        if attempt.number > retries:
            self._tell(function, attempt, outcome, "OnFailure", "RetriesExhausted", config)
            return
        pause = RETRY_SECONDS[attempt.number - 1]
        if age + pause > config.get("MaximumEventAgeInSeconds", 21_600):
            self._tell(function, attempt, outcome, "OnFailure", "EventAgeExceeded", config)
            return
        events.agenda.after(pause, partial(self._submit, replace(attempt, number=attempt.number + 1)))

    def _tell(
        self,
        function: LocalFunction,
        attempt: _Attempt,
        outcome: Outcome,
        which: str,
        condition: str,
        config: Mapping[str, Any],
    ) -> None:
        """Send what became of an event to the destination that is set for it, and to the dead-letter queue."""
        with acting_as(function.role, function.function_name):
            self._send(function, attempt, outcome, which, condition, config)

    def _send(
        self,
        function: LocalFunction,
        attempt: _Attempt,
        outcome: Outcome,
        which: str,
        condition: str,
        config: Mapping[str, Any],
    ) -> None:
        events, payload = self._cloud.events, json.loads(outcome.payload)
        destination = config.get("DestinationConfig", {}).get(which, {}).get("Destination")
        try:
            if destination:
                context = {"statusCode": 200, "executedVersion": str(function.version)}
                record = {
                    "version": "1.0",
                    "timestamp": datetime.fromtimestamp(self._cloud.clock.now(), UTC)
                    .isoformat(timespec="milliseconds")
                    .replace("+00:00", "Z"),
                    "requestContext": {
                        "requestId": attempt.request_id,
                        "functionArn": f"{function.function_arn}:$LATEST",
                        "condition": condition,
                        "approximateInvokeCount": attempt.number,
                    },
                    "requestPayload": json.loads(attempt.event or "{}"),
                    "responseContext": context | ({"functionError": "Unhandled"} if outcome.failed else {}),
                    "responsePayload": payload,
                }
                what = "Success" if which == "OnSuccess" else "Failure"
                events.send(
                    destination,
                    json.dumps(record),
                    detail_type=f"Lambda Function Invocation Result - {what}",
                    source="lambda",
                    resources=[destination, f"{function.function_arn}:$LATEST"],
                )
            if outcome.failed and function.dead_letter_arn:
                attributes = {
                    "RequestID": attempt.request_id,
                    "ErrorCode": "200",
                    "ErrorMessage": str(payload.get("errorMessage"))[:1024],
                }
                events.send(function.dead_letter_arn, attempt.event, attributes=attributes)
        except Undeliverable as error:
            self._measure(function, DestinationDeliveryFailures=1)
            log.warning("Lambda function '%s': no delivery of its result: %s", function.function_name, error)

    # -- the end --------------------------------------------------------------------------------------------------------

    def drain(self, timeout_seconds: float = 30) -> bool:
        """Wait until no asynchronous attempt is under way; False when that takes too long. Later retries do not count."""
        with self._lock:
            return self._lock.wait_for(lambda: self._waiting == 0, timeout_seconds)

    def reset(self) -> None:
        """End every process."""
        self.close()
        shutil.rmtree(self._cloud.state / "functions", ignore_errors=True)
        self._closing.clear()

    def close(self) -> None:
        """End every process and thread."""
        self._closing.set()
        with self._lock:
            sandboxes, self._idle = [*self._idle, *self._busy], []
            workers, self._workers = self._workers, None
            reaper, self._reaper = self._reaper, None
        for sandbox in sandboxes:
            sandbox.stop()
        if workers is not None:
            workers.shutdown(wait=True, cancel_futures=True)
        if reaper is not None:
            reaper.join(5)
        with self._lock:
            self._waiting = 0


def find(arn: str) -> LocalFunction | None:
    """The function, version or alias of that ARN."""
    parts = arn.split(":")
    if len(parts) not in (7, 8) or parts[5] != "function":
        return None
    try:
        found: LocalFunction = lambda_backends[parts[4]][parts[3]].get_function(
            parts[6], parts[7] if len(parts) == 8 else None
        )
    except (ServiceException, UnknownFunctionException, KeyError):
        return None
    return found


# --- in moto's place ---------------------------------------------------------------------------------------------------------


class LocalFunction(LambdaFunction):  # type: ignore[misc]
    """moto's record of a function, with what it leaves out."""

    dead_letter_arn: str | None = None

    def credentials(self) -> dict[str, str]:
        """Of a session of the function's role."""
        cached: dict[str, str] | None = self.__dict__.get("_credentials")
        if cached is None or cached["role"] != self.role:
            made = principals.credentials(self.role, self.function_name, self.region)
            cached = self.__dict__["_credentials"] = {"role": self.role, **made}
        return {name: value for name, value in cached.items() if name != "role"}

    def permits(self, principal: str, source: str) -> bool:
        """Whether the function's own policy lets that service invoke it on behalf of that resource."""
        return any(_permits(statement, principal, source) for statement in self.policy.statements)

    def configure(self, spec: Mapping[str, Any]) -> None:
        """What moto does not keep of a request."""
        if "DeadLetterConfig" in spec:
            self.dead_letter_arn = spec["DeadLetterConfig"].get("TargetArn") or None

    def get_configuration(self, on_create: bool = False) -> dict[str, Any]:
        config = super().get_configuration(on_create)
        if self.dead_letter_arn:
            config["DeadLetterConfig"] = {"TargetArn": self.dead_letter_arn}
        return {name: value for name, value in config.items() if value is not None}

    def get_code(self) -> dict[str, Any]:
        # AWS gives a link to the archive; moto makes one up that leads nowhere.
        return {**super().get_code(), "Code": {"RepositoryType": "S3"}}


class LocalLambdaBackend(LambdaBackend):  # type: ignore[misc]
    """moto's records, with our checks and our processes."""

    functions: ClassVar[Functions]

    @property
    def _url_module(self) -> Any:
        return urls

    def create_function(self, spec: dict[str, Any]) -> LambdaFunction:
        spec = {**spec, "Code": self._code(spec.get("Code") or {}, spec)}
        validation.check("lambda", "CreateFunction", spec)
        self._refuse_what_cannot_run(spec)
        function = super().create_function({**spec, "Publish": False})
        # The class that moto makes is fixed in its own code.
        function.__class__ = LocalFunction
        function.configure(spec)
        return self.publish_version(spec["FunctionName"]) if spec.get("Publish") else function

    def update_function_code(
        self, function_name: str, qualifier: str | None, body: dict[str, Any]
    ) -> dict[str, Any] | None:
        self.get_function(function_name, qualifier)
        code = {**body, **self._code(body, {})}
        updated: dict[str, Any] | None = super().update_function_code(function_name, qualifier, code)
        return updated

    def update_function_configuration(
        self, function_name: str, qualifier: str | None, body: dict[str, Any]
    ) -> dict[str, Any] | None:
        validation.check("lambda", "UpdateFunctionConfiguration", {"FunctionName": function_name, **body})
        function = self.get_function(function_name, qualifier)
        self._refuse_what_cannot_run(body)
        body = {**body, "Environment": {"Variables": {}, **body["Environment"]}} if "Environment" in body else body
        super().update_function_configuration(function_name, qualifier, body)
        function.configure(body)
        configuration: dict[str, Any] = function.get_configuration()
        return configuration

    def delete_function(self, function_name: str, qualifier: str | None = None) -> None:
        name = self.get_function(function_name, qualifier).function_name
        super().delete_function(function_name, qualifier)
        self.functions.end(lambda sandbox: sandbox.spec.name == name)

    def create_event_source_mapping(self, spec: dict[str, Any]) -> Any:
        raise Fault("InvalidParameterValueException", "The local cloud does not implement event source mappings yet.")

    def _code(self, code: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        """The code as an archive in the request, wherever it is."""
        if code.get("ImageUri") or spec.get("PackageType") == "Image":
            raise Fault("InvalidParameterValueException", "The local cloud runs no functions of container images.")
        if "S3Bucket" in code:
            try:
                body = storage.read(f"s3://{code['S3Bucket']}/{code.get('S3Key', '')}")
            except storage.Missing as error:
                kind, what = ("Bucket", "bucket") if isinstance(error, storage.NoBucket) else ("Key", "key")
                raise Fault(
                    "InvalidParameterValueException",
                    f"Error occurred while GetObject. S3 Error Code: NoSuch{kind}. "
                    f"S3 Error Message: The specified {what} does not exist.",
                ) from error
        elif code.get("ZipFile"):
            packed = code["ZipFile"]
            body = base64.b64decode(packed if isinstance(packed, bytes) else packed.encode())
        else:
            raise Fault("InvalidParameterValueException", "Please provide a source for function code.")
        _check_archive(body)
        return {"ZipFile": base64.b64encode(body).decode()}

    @staticmethod
    def _refuse_what_cannot_run(spec: Mapping[str, Any]) -> None:
        if (timeout := spec.get("Timeout") or 0) > _LONGEST_SECONDS:
            # The service model has the limit of another kind of function.
            raise Fault(
                "ValidationException",
                f"1 validation error detected: Value '{timeout}' at 'timeout' failed to satisfy constraint: "
                f"Member must have value less than or equal to {_LONGEST_SECONDS}",
            )
        runtime = spec.get("Runtime")
        if runtime is not None and not str(runtime).startswith("python3."):
            raise Fault("InvalidParameterValueException", f"The local cloud runs Python functions only, not {runtime}.")
        if spec.get("Layers"):
            raise Fault("InvalidParameterValueException", "The local cloud does not implement layers yet.")
        reserved = sorted(_RESERVED & set((spec.get("Environment") or {}).get("Variables") or {}))
        if reserved:
            raise Fault(
                "InvalidParameterValueException",
                "Lambda was unable to configure your environment variables because the environment variables you have "
                "provided contains reserved keys that are currently not supported for modification. Reserved keys used in "
                f"this request: {', '.join(reserved)}",
            )
        if (role := spec.get("Role")) and not roles.assumable(role, "lambda.amazonaws.com"):
            raise Fault(
                "InvalidParameterValueException", "The role defined for the function cannot be assumed by Lambda."
            )

    def invoke(
        self, function_name: str, qualifier: str | None, body: Any, headers: Any, response_headers: Any
    ) -> str | bytes | None:
        function = self.get_function(function_name, qualifier)
        kind = headers.get("X-Amz-Invocation-Type") or "RequestResponse"
        text = body.decode() if isinstance(body, bytes) else body or ""
        limit = _ASYNC_BYTES if kind == "Event" else _SYNC_BYTES
        if len(text.encode()) > limit:
            raise Fault(
                "RequestTooLargeException",
                f"{len(text.encode())} byte payload is too large for the {kind} invocation type (limit {limit} bytes)",
            )
        if text.strip():
            try:
                json.loads(text)
            except ValueError as error:
                raise Fault(
                    "InvalidRequestContentException", f"Could not parse request body into json: {error}"
                ) from error
        if kind == "DryRun":
            return b""
        if kind == "Event":
            self.functions.invoke_later(function, text)
            return b""
        outcome = self.functions.invoke(function, text)
        response_headers["x-amz-executed-version"] = str(function.version)
        response_headers["x-amz-log-result"] = base64.b64encode(outcome.log.encode()[-_TAIL_BYTES:]).decode()
        if outcome.failed:
            response_headers["x-amz-function-error"] = "Unhandled"
        return outcome.payload.encode()


def _check_archive(body: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise Fault(
            "InvalidParameterValueException",
            "Could not unzip uploaded file. Please check your file, then try to upload again.",
        ) from error
    if size > _UNZIPPED_BYTES:
        raise Fault("InvalidParameterValueException", f"Unzipped size must be smaller than {_UNZIPPED_BYTES} bytes")


def _permits(statement: Mapping[str, Any], principal: str, source: str) -> bool:
    who = statement.get("Principal", {})
    named = who if isinstance(who, str) else who.get("Service", "")
    action = statement.get("Action")
    if named not in (principal, "*") or action not in ("lambda:InvokeFunction", "lambda:*", "*"):
        return False
    condition = statement.get("Condition", {})
    like = {**condition.get("ArnLike", {}), **condition.get("StringEquals", {})}
    wanted = {name.lower(): value for name, value in like.items()}
    if (arn := wanted.get("aws:sourcearn")) and not _like(str(arn), source):
        return False
    account = wanted.get("aws:sourceaccount")
    return account is None or account == ACCOUNT


def _like(pattern: str, text: str) -> bool:
    # An ARN pattern knows * and ? alone; brackets stand for themselves.
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))


def register(functions: Functions) -> None:
    """Put our functions in the place of moto's, before the first is made. A second call changes nothing."""
    if getattr(lambda_backends.backend, "functions", None) is functions:
        return
    lambda_backends.backend = type("RegisteredLambdaBackend", (LocalLambdaBackend,), {"functions": functions})
    lambda_backends.clear()
