"""What a CloudFormation type is: calls of its service's own API. The types themselves are in `resource_types`.

    kind = resource_types.kind_of("AWS::S3::Bucket")
    made = kind.create(services, "name-for-it", {"VersioningConfiguration": {"Status": "Enabled"}})
    made.physical_id, made.attributes["Arn"]

Real CloudFormation works the same way: it is a client of the services. So a resource made by a stack and one made by hand go
through the same validation, and a part of the local cloud that replaces moto's is reached with no further wiring.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import botocore.session
from botocore.config import Config
from moto.cloudformation import parsing as moto_parsing

from windlass.local.cloud import ROOT_ACCESS_KEY, ROOT_SECRET_KEY

Properties = Mapping[str, Any]


class Refusal(Exception):
    """A resource cannot be as the template wants it. The message is the event's ResourceStatusReason."""


@dataclass(frozen=True)
class Made:
    """A resource that exists.

    Attributes:
        physical_id: what ``Ref`` gives.
        attributes: what ``Fn::GetAtt`` gives.
    """

    physical_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)


ADMINISTRATOR = (ROOT_ACCESS_KEY, ROOT_SECRET_KEY, "")

_CLIENTS = {"application_autoscaling": "application-autoscaling", "functions": "lambda"}
_lock = threading.Lock()
_session: botocore.session.Session | None = None


class Services:
    """Clients of the local cloud's own services, over its own address.

    Args:
        url: where it answers.
        region: of the stack.
        account: of the stack.
        credentials: access key, secret and session token of whom the calls are made for; by default the root's.
    """

    def __init__(self, url: str, region: str, account: str, credentials: tuple[str, str, str] = ADMINISTRATOR) -> None:
        self.region, self.account = region, account
        self.limited = credentials != ADMINISTRATOR
        self._credentials = credentials
        self._url = url
        self._clients: dict[str, Any] = {}

    def __getattr__(self, service: str) -> Any:
        """``services.s3``, ``services.application_autoscaling``: a botocore client."""
        if service.startswith("_"):
            raise AttributeError(service)
        with _lock:
            if service not in self._clients:
                self._clients[service] = _client(
                    _CLIENTS.get(service, service), self._url, self.region, self._credentials
                )
            return self._clients[service]


def _client(service: str, url: str, region: str, credentials: tuple[str, str, str]) -> Any:
    """Nothing of the user's AWS configuration reaches it: no profile, no credentials, no proxy."""
    global _session
    if _session is None:
        _session = botocore.session.Session()
        for variable in ("profile", "config_file", "credentials_file"):
            _session.set_config_variable(variable, None)
    config = Config(
        proxies={}, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, parameter_validation=True
    )
    return _session.create_client(
        service,
        region_name=region,
        endpoint_url=url,
        aws_access_key_id=credentials[0],
        aws_secret_access_key=credentials[1],
        aws_session_token=credentials[2] or None,
        config=config,
    )


class ResourceType(abc.ABC):
    """One CloudFormation type.

    Attributes:
        type: its name.
        name_property: the property that holds its name, where CloudFormation makes one up if it is absent.
        honours: every property that `create` and `update` act on.
        replaces: those whose change takes a new resource.
    """

    type: ClassVar[str]
    name_property: ClassVar[str] = ""
    honours: ClassVar[frozenset[str]]
    replaces: ClassVar[frozenset[str]] = frozenset()

    def check(self, properties: Properties) -> None:
        """Refuse what would be dropped."""
        unknown = sorted(set(properties) - self.honours)
        if unknown:
            raise Refusal(f"The local cloud does not implement {', '.join(unknown)} of {self.type}")

    @abc.abstractmethod
    def create(self, services: Services, name: str, properties: Properties) -> Made:
        """Make it. ``name`` is a fresh name for it, to be used if the properties hold none."""

    def update(self, services: Services, made: Made, old: Properties, new: Properties) -> Made:
        """Change what is not in ``replaces``. By default once more by ``create``: many an API's Put is both."""
        return self.create(services, made.physical_id, new)

    @abc.abstractmethod
    def delete(self, services: Services, made: Made, properties: Properties) -> None:
        """Delete it."""


# ------------------------------------------------------------------------------------------------- types that moto has alone


class MotoType(ResourceType):
    """A type that only moto's own model of it can make. Which of its properties moto honours is not known."""

    honours = frozenset()

    def __init__(self, model: Any) -> None:
        self.type = model.cloudformation_type()  # type: ignore[misc]
        self.name_property = model.cloudformation_name_type() or ""  # type: ignore[misc]
        self._model = model

    def check(self, properties: Mapping[str, Any]) -> None:
        """moto keeps no list of the properties that it honours."""

    def create(self, services: Services, name: str, properties: Mapping[str, Any]) -> Made:
        name = properties.get(self.name_property, name)
        return self._call("create_from_cloudformation_json", services, name, properties)

    def update(self, services: Services, made: Made, old: Mapping[str, Any], new: Mapping[str, Any]) -> Made:
        assert isinstance(made, _MotoMade)
        return self._call(
            "update_from_cloudformation_json", services, made.physical_id, new, original_resource=made.model
        )

    def delete(self, services: Services, made: Made, properties: Mapping[str, Any]) -> None:
        assert isinstance(made, _MotoMade)
        if hasattr(made.model, "delete"):
            _shielded(self.type, made.model.delete, services.account, services.region)
        else:
            where = (services.account, services.region)
            body = {"Type": self.type, "Properties": dict(properties)}
            _shielded(self.type, self._model.delete_from_cloudformation_json, made.physical_id, body, *where)

    def _call(self, method: str, services: Services, name: str, properties: Mapping[str, Any], **more: Any) -> Made:
        if services.limited:
            # moto's models go past the APIs, and so past their authorisation.
            raise Refusal(
                f"The local cloud cannot authorise {self.type}: with --enforce-iam only the root can create it"
            )
        body = {"Type": self.type, "Properties": dict(properties)}
        names = {"new_resource_name": name} if more else {"resource_name": name}
        model = _shielded(
            self.type,
            getattr(self._model, method),
            **names,
            cloudformation_json=body,
            account_id=services.account,
            region_name=services.region,
            **more,
        )
        return _MotoMade(str(model.physical_resource_id), _MotoAttributes(model), model)


@dataclass(frozen=True)
class _MotoMade(Made):
    model: Any = None


class _MotoAttributes(Mapping[str, str]):
    def __init__(self, model: Any) -> None:
        self._model = model

    def __getitem__(self, name: str) -> str:
        try:
            return str(self._model.get_cfn_attribute(name))
        except (NotImplementedError, moto_parsing.UnformattedGetAttTemplateException, AttributeError) as error:
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _shielded(kind: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    try:
        return method(*arguments, **named)
    except Exception as error:
        raise Refusal(f"{kind}: {type(error).__name__}: {error}") from error
