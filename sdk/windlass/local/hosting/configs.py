"""What endpoints are made of: models and endpoint configs, kept as they were given once they have been checked.

They are only records: nothing runs for them. ``hosting.py`` makes endpoints of them.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from windlass.local import cloud as clouds
from windlass.local import listing, storage
from windlass.local.faults import Fault
from windlass.local.hosting import multi_model, serverless
from windlass.local.jobs import containers

# What a request may ask for on AWS and not here, yet. Silence would be a false success.
_REFUSED_IN_CONFIG = (
    "ExplainerConfig",
    "CrossRegionTrafficConfig",
)
_REFUSED_IN_VARIANT = ("ManagedInstanceScaling", "InstancePools", "CapacityReservationConfig")


@dataclass
class Record:
    """A model or an endpoint config: a name and what was asked for."""

    name: str
    arn: str
    created: datetime
    request: dict[str, Any]


@dataclass
class Model(Record):
    """``container`` is the primary one, with a model package resolved to its image, data and environment."""

    container: dict[str, Any] = field(default_factory=dict)


class EndpointConfigs:
    """The models and endpoint configs of one local cloud.

    The methods named as operations take the request as AWS has it and return its answer.
    """

    def __init__(self, cloud: clouds.Cloud) -> None:
        self._cloud = cloud
        self._changing = threading.Lock()
        self._models: dict[tuple[str, str], Model] = {}
        self._configs: dict[tuple[str, str], Record] = {}
        self._saved_models = cloud.database.table("models")
        self._saved_configs = cloud.database.table("endpoint-configs")

    def restore(self) -> None:
        """Put back what an earlier server saved."""
        for key, record in self._saved_models.items():
            self._models[split(key)] = Model(**record)
        for key, record in self._saved_configs.items():
            self._configs[split(key)] = Record(**record)

    def reset(self) -> None:
        """Forget everything."""
        with self._changing:
            self._models.clear()
            self._configs.clear()

    # -- models -------------------------------------------------------------------------------------------------------

    def create_model(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["ModelName"]
        if "ExecutionRoleArn" not in request:
            raise Fault("ValidationException", "ExecutionRoleArn is required to create a model.")
        if ("PrimaryContainer" in request) == bool(request.get("Containers")):
            raise Fault("ValidationException", "Specify exactly one of PrimaryContainer and Containers.")
        [container, *others] = request.get("Containers") or [request["PrimaryContainer"]]
        if others:
            raise unsupported("inference pipelines (more than one container in Containers)")
        container = containers.resolve(container, functools.partial(self._cloud.registry.package, region))
        multi_model.check(container)
        if "Image" not in container:
            raise Fault("ValidationException", "A container definition needs an Image or a ModelPackageName.")
        if not multi_model.is_asked(container) and not containers.exists(container):
            raise Fault("ValidationException", f"Could not find model data at {containers.model_data(container)}.")
        with self._changing:
            arn = arn_of(region, "model", name)
            if (region, name) in self._models:
                raise Fault("ValidationException", f'Cannot create already existing model "{arn}".')
            model = self._models[region, name] = Model(name, arn, self._now(), kept(request), container)
            self._saved_models.save(f"{region}/{name}", asdict(model))
        return {"ModelArn": arn}

    def describe_model(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        model = self.model(region, request["ModelName"])
        return {
            "EnableNetworkIsolation": False,
            **copy.deepcopy(model.request),
            "ModelArn": model.arn,
            "CreationTime": model.created,
        }

    def list_models(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        summaries = [
            {
                "ModelName": each.name,
                "ModelArn": each.arn,
                "CreationTime": each.created,
            }
            for each in self._of(region, self._models)
        ]
        return page_of("Model", summaries, request)

    def delete_model(self, region: str, request: Mapping[str, Any]) -> None:
        with self._changing:
            model = self.model(region, request["ModelName"])
            del self._models[region, model.name]
            self._saved_models.delete(f"{region}/{model.name}")

    def model(self, region: str, name: str) -> Model:
        """The model of that name; raises AWS's error when there is none."""
        if (region, name) not in self._models:
            raise Fault("ValidationException", f'Could not find model "{arn_of(region, "model", name)}".')
        return self._models[region, name]

    # -- endpoint configs ---------------------------------------------------------------------------------------------

    def create_endpoint_config(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["EndpointConfigName"]
        for key in _REFUSED_IN_CONFIG:
            if key in request:
                raise unsupported(key)
        shadows = request.get("ShadowProductionVariants", [])
        if shadows and (len(shadows), len(request["ProductionVariants"])) != (1, 1):
            raise Fault(
                "ValidationException",
                "With ShadowProductionVariants, specify exactly one variant in ProductionVariants and one in "
                f"ShadowProductionVariants; there are {len(request['ProductionVariants'])} and {len(shadows)}.",
            )
        names = [variant["VariantName"] for variant in [*request["ProductionVariants"], *shadows]]
        if len(set(names)) < len(names):
            raise Fault(
                "ValidationException", "Each production variant in an endpoint configuration must have a unique name."
            )
        if shadows and "AsyncInferenceConfig" in request:
            raise Fault("ValidationException", "ShadowProductionVariants is not supported with AsyncInferenceConfig.")
        if any("ServerlessConfig" in shadow for shadow in shadows):
            raise Fault("ValidationException", "ServerlessConfig is not supported with ShadowProductionVariants.")
        stored = kept(request)
        for variant in variants(stored).values():
            self._check_variant(region, variant)
            variant.setdefault("InitialVariantWeight", 1.0)
        for extra in ("AsyncInferenceConfig", "ShadowProductionVariants"):
            used = [self.model(region, each["ModelName"]) for each in variants(stored).values()]
            if extra in request and any(multi_model.is_asked(model.container) for model in used):
                raise Fault("ValidationException", f"{extra} is not supported with multi-model endpoints.")
        serverless.check(request, lambda model: self.model(region, model).request)
        if (capture := request.get("DataCaptureConfig")) and not storage.bucket_exists(
            containers.s3_uri(capture["DestinationS3Uri"])
        ):
            raise Fault(
                "ValidationException", f"Could not access the data capture destination {capture['DestinationS3Uri']}."
            )
        with self._changing:
            arn = arn_of(region, "endpoint-config", name)
            if (region, name) in self._configs:
                raise Fault("ValidationException", f'Cannot create already existing endpoint configuration "{arn}".')
            config = self._configs[region, name] = Record(name, arn, self._now(), stored)
            self._saved_configs.save(f"{region}/{name}", asdict(config))
        return {"EndpointConfigArn": arn}

    def describe_endpoint_config(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config(region, request["EndpointConfigName"])
        return {
            "EnableNetworkIsolation": False,
            **copy.deepcopy(config.request),
            "EndpointConfigArn": config.arn,
            "CreationTime": config.created,
        }

    def list_endpoint_configs(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        summaries = [
            {
                "EndpointConfigName": each.name,
                "EndpointConfigArn": each.arn,
                "CreationTime": each.created,
            }
            for each in self._of(region, self._configs)
        ]
        return page_of("EndpointConfig", summaries, request)

    def delete_endpoint_config(self, region: str, request: Mapping[str, Any]) -> None:
        with self._changing:
            config = self.config(region, request["EndpointConfigName"])
            del self._configs[region, config.name]
            self._saved_configs.delete(f"{region}/{config.name}")

    def config(self, region: str, name: str) -> Record:
        """The endpoint config of that name; raises AWS's error when there is none."""
        if (region, name) not in self._configs:
            arn = arn_of(region, "endpoint-config", name)
            raise Fault("ValidationException", f'Could not find endpoint configuration "{arn}".')
        return self._configs[region, name]

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check_variant(self, region: str, variant: Mapping[str, Any]) -> None:
        for key in _REFUSED_IN_VARIANT:
            if key in variant:
                raise unsupported(f"{key} (variant {variant['VariantName']})")
        if "ModelName" not in variant:
            raise unsupported(f"inference components (variant {variant['VariantName']} names no model)")
        self.model(region, variant["ModelName"])
        for key in ("InstanceType", "InitialInstanceCount"):
            if key not in variant and "ServerlessConfig" not in variant:
                raise Fault(
                    "ValidationException", f"{key} is required for production variant {variant['VariantName']}."
                )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._cloud.clock.now(), UTC)

    def _of(self, region: str, table: Mapping[tuple[str, str], Any]) -> list[Any]:
        with self._changing:
            return [record for (home, _), record in table.items() if home == region]


def split(key: str) -> tuple[str, str]:
    region, _, name = key.partition("/")
    return region, name


def instances_of(variant: Mapping[str, Any]) -> int:
    """InitialInstanceCount. What is serverless counts as one instance, which is always there."""
    return int(variant.get("InitialInstanceCount", 1))


def unsupported(what: str) -> Fault:
    return Fault("ValidationException", f"The local cloud does not implement {what} yet.")


def arn_of(region: str, kind: str, name: str) -> str:
    return f"arn:aws:sagemaker:{region}:{clouds.ACCOUNT}:{kind}/{name}"


def kept(request: Mapping[str, Any]) -> dict[str, Any]:
    return copy.deepcopy({key: value for key, value in request.items() if key != "Tags"})


def variants(config: Mapping[str, Any], *roles: str) -> dict[str, dict[str, Any]]:
    """The variants of a config by their names: those of these members, or else all."""
    members = roles or ("ProductionVariants", "ShadowProductionVariants")
    return {variant["VariantName"]: variant for member in members for variant in config.get(member, [])}


def page_of(kind: str, summaries: list[dict[str, Any]], request: Mapping[str, Any]) -> dict[str, Any]:
    """What a List operation answers: its filters, its order (the newest first, unless asked otherwise), its pages."""
    status = "EndpointStatus" if kind == "Endpoint" else None
    asked = {"SortOrder": "Descending", **request}
    page, token = listing.select(summaries, asked, name=f"{kind}Name", status=status)
    return {f"{kind}s": page, "NextToken": token}
