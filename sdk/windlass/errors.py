"""Every error that Windlass raises on purpose, in one tree.

    WindlassError
    ├── InvalidInput(ValueError)         an argument, spec or file of the user's is wrong; nothing was sent
    │   ├── CorruptArtifact              a model bundle does not match its manifest, or must not be opened
    │   ├── PolicyRefused                a gate of the policy is shut; `gates` lists each that is
    │   └── MissingExtra(ImportError)    an optional dependency is needed: what to install, and why
    ├── DiskFull(OSError)                no room on this disk; nothing half-written was left
    ├── ServiceError(RuntimeError)       AWS refused or failed a request; `code`, `operation`, `request_id`
    │   ├── NotFound(LookupError)        the named thing does not exist
    │   ├── Conflict                     it exists already, or is busy
    │   ├── Refused(ValueError)          AWS found a value of the request wrong
    │   ├── ModelFailed                  the model behind an endpoint raised; carries its traceback
    │   ├── AccessDenied(PermissionError)  credentials or policies do not allow it
    │   ├── QuotaExceeded                an account limit
    │   ├── Throttled                    too many requests, after retries
    │   └── Unreachable(ConnectionError) no answer from the endpoint
    ├── JobFailed(RuntimeError)          a job ended Failed or Stopped; carries the script's own traceback
    ├── DeploymentFailed(RuntimeError)   an endpoint did not come up
    │   └── RolledBack                   it is in service, but on the config from before
    └── WaitTimeout(TimeoutError)        the work goes on; we stopped watching it

A message says where, what, and what to do:
``Deploying endpoint 'fraud': ResourceLimitExceeded for ml.g5.xlarge. Ask for quota, or pass instance_type=.``
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WindlassError(Exception):
    """Root of the tree. ``str(error)`` is one message: ``where: what. hint``.

    Args:
        what: what went wrong, with the bad value.
        where: what was being done, for example ``Deploying endpoint 'fraud'``.
        hint: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if not self.hint:
            return text
        if text.endswith("\n"):  # a traceback: the hint stands below it
            return text + self.hint
        return f"{text if text.endswith(('.', '!', '?')) else f'{text}.'} {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not pickle by default, and errors cross process pools.
        return (_rebuild, (type(self), self.__dict__))


def _rebuild(kind: type[WindlassError], state: dict[str, object]) -> WindlassError:
    # OSError lays its objects out in its own way, and Python insists that it makes them.
    error = OSError.__new__(kind) if issubclass(kind, OSError) else kind.__new__(kind)
    error.__dict__.update(state)
    error.args = (state.get("what", ""),)
    return error


class InvalidInput(WindlassError, ValueError):
    """An argument, a spec or a file of the user's is wrong. Nothing was sent."""


class CorruptArtifact(InvalidInput):
    """A model bundle does not match its manifest, or holds what must not be unpacked."""


class PolicyRefused(InvalidInput):
    """A gate of the policy is shut. ``gates`` lists each that is. Nothing was sent."""

    def __init__(self, what: str, *, where: str = "", hint: str = "", gates: tuple[str, ...] = ()) -> None:
        self.gates = gates
        super().__init__(what, where=where, hint=hint)


class MissingExtra(InvalidInput, ImportError):
    """An optional dependency is missing. The message names the extra to install."""

    def __init__(self, module: str, extra: str, why: str) -> None:
        self.module, self.extra = module, extra
        super().__init__(f"{why} needs the package '{module}'", hint=f"Install it: pip install 'windlass[{extra}]'.")


class DiskFull(WindlassError, OSError):
    """No room on this disk. Nothing half-written was left."""


class ServiceError(WindlassError, RuntimeError):
    """AWS refused or failed a request.

    Attributes:
        code: the AWS error code, for example ``ValidationException``.
        operation: the API operation, for example ``CreateEndpoint``.
        request_id: what AWS Support asks for.
        status: HTTP status; for a model's error the one that its server answered; 0 where nothing was answered.
        retry_after: the header Retry-After as it came; `windlass.retries` reads it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        hint: str = "",
        code: str = "",
        operation: str = "",
        request_id: str = "",
        status: int = 0,
        retry_after: str = "",
    ) -> None:
        self.code, self.operation, self.request_id, self.status = code, operation, request_id, status
        self.retry_after = retry_after
        super().__init__(what, where=where, hint=hint)


class NotFound(ServiceError, LookupError):
    """The named thing does not exist."""


class Conflict(ServiceError):
    """It exists already, or something else is changing it."""


class Refused(ServiceError, ValueError):
    """AWS found a value of the request wrong."""


class ModelFailed(ServiceError):
    """The model behind an endpoint raised or answered with an error. The message holds what it said."""


class AccessDenied(ServiceError, PermissionError):
    """Credentials are missing or expired, or policies do not allow the call."""


class QuotaExceeded(ServiceError):
    """An account limit is reached."""


class Throttled(ServiceError):
    """Too many requests, also after boto3's own retries."""


class Unreachable(ServiceError, ConnectionError):
    """No answer from the service: network, proxy, or a local cloud that is not running.

    Attributes:
        sent: whether the request may have arrived: the connection was there, and broke.
    """

    sent: bool = True


class JobFailed(WindlassError, RuntimeError):
    """A job ended Failed or Stopped. ``reason`` is SageMaker's FailureReason: the script's own exception."""

    def __init__(self, what: str, *, where: str = "", hint: str = "", reason: str = "") -> None:
        self.reason = reason
        super().__init__(what, where=where, hint=hint)


class DeploymentFailed(WindlassError, RuntimeError):
    """An endpoint did not come up, or an update failed. ``reason`` is SageMaker's FailureReason."""

    def __init__(self, what: str, *, where: str = "", hint: str = "", reason: str = "") -> None:
        self.reason = reason
        super().__init__(what, where=where, hint=hint)


class RolledBack(DeploymentFailed):
    """The endpoint is in service, but on the config from before: its alarms or its health check refused the new one."""


class WaitTimeout(WindlassError, TimeoutError):
    """We stopped watching; the work itself goes on."""


def choices(value: str, valid: Iterable[str]) -> str:
    """The valid values to set beside a bad one, the likeliest first.

    >>> choices("p98_latency", ["accuracy", "p99_latency"])
    "Did you mean 'p99_latency'? Valid: accuracy, p99_latency."
    """
    valid = list(valid)
    near = difflib.get_close_matches(value, valid, n=1)
    return (f"Did you mean '{near[0]}'? " if near else "") + f"Valid: {', '.join(valid)}."
