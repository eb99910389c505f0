"""Multi-model endpoints as boto3 sees them, on a server that was really started."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cloud.test_hosting import Workshop, refused, until

CODE = """
import json, os
def model_fn(model_dir):
    version = open(model_dir + "/version").read()
    if version.startswith("broken"):
        raise RuntimeError("weights of another model")
    return version, bytearray(b"x") * (int(version.split("-")[1]) << 20)
def predict_fn(data, model):
    if data == "die":
        os._exit(7)
    return {"version": model[0], "echo": data}
"""


class Library(Workshop):
    """A workshop whose endpoint serves all models under a prefix."""

    def __init__(self, rig: Any) -> None:
        super().__init__(rig)
        self.prefix = f"{self.endpoint}/models/"

    def put(self, target: str, version: str) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for name, text in (("version", version), ("code/inference.py", CODE)):
                member = tarfile.TarInfo(name)
                member.size = len(text.encode())
                tar.addfile(member, io.BytesIO(text.encode()))
        self.rig.upload(f"{self.prefix}{target}", packed.getvalue())

    def container(self, *, memory_mib: int = 0, **more: Any) -> dict[str, Any]:
        variables = {"WINDLASS_MULTI_MODEL_MEMORY_BYTES": str(memory_mib << 20)} if memory_mib else {}
        prefix = f"s3://{self.bucket}/{self.prefix}"
        return {"Image": "image", "Mode": "MultiModel", "ModelDataUrl": prefix, "Environment": variables, **more}

    def open(self, *, instances: int = 1, **container: Any) -> dict[str, Any]:
        name = self.rig.unique("library")
        self.sagemaker.create_model(
            ModelName=name, ExecutionRoleArn=self.rig.role, PrimaryContainer=self.container(**container)
        )
        variant = {
            "VariantName": "main",
            "ModelName": name,
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": instances,
        }
        self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        return self.create(name)

    def ask(self, target: str, data: Any = 1) -> str:
        version: str = self.invoke(data, TargetModel=target)["Prediction"]["version"]
        return version


@pytest.fixture
def library(rig: Any) -> Iterator[Library]:
    library = Library(rig)
    yield library
    library.close()


def test_models_are_loaded_when_they_are_asked_for(library: Library) -> None:
    library.put("a.tar.gz", "a-0")
    assert library.open()["EndpointStatus"] == "InService"
    assert [library.ask("a.tar.gz") for _ in range(3)] == ["a-0"] * 3

    library.put("deep/er/b.tar.gz", "b-0")  # needs no update of the endpoint

    assert library.ask("deep/er/b.tar.gz") == "b-0"
    until(lambda: library.metric("ModelCacheHit", "SampleCount"), lambda it: it == 4)
    assert library.metric("ModelCacheHit") == 2
    for name in ("ModelDownloadingTime", "ModelLoadingTime", "ModelLoadingWaitTime"):
        assert library.metric(name, "SampleCount") == 2
        assert (library.metric(name, "Minimum") or 0) > 0
    until(lambda: library.metric("LoadedModelCount", "Maximum", "/aws/sagemaker/Endpoints"), lambda it: it == 2)


def test_when_memory_is_short_the_model_that_rested_longest_goes(library: Library) -> None:
    for name in "abc":
        library.put(f"{name}.tar.gz", f"{name}-250")
    library.open(memory_mib=700)

    assert [library.ask(f"{name}.tar.gz") for name in "abaca"] == ["a-250", "b-250", "a-250", "c-250", "a-250"]

    until(lambda: library.metric("ModelUnloadingTime", "SampleCount"), lambda it: it == 1)
    assert library.metric("ModelCacheHit") == 2  # both later ones of a: c took the place of b
    assert library.ask("b.tar.gz") == "b-250"


def test_a_model_larger_than_the_memory_is_refused_by_the_container(library: Library) -> None:
    library.put("huge.tar.gz", "huge-400")
    library.put("small.tar.gz", "small-0")
    library.open(memory_mib=300)

    with pytest.raises(library.runtime.exceptions.ModelError) as raised:
        library.ask("huge.tar.gz")

    assert raised.value.response["OriginalStatusCode"] == 507
    assert library.ask("small.tar.gz") == "small-0"


def test_without_a_cache_a_model_goes_when_it_has_answered(library: Library) -> None:
    library.put("a.tar.gz", "a-0")
    library.open(MultiModelConfig={"ModelCacheSetting": "Disabled"})

    assert [library.ask("a.tar.gz") for _ in range(2)] == ["a-0"] * 2

    until(lambda: library.metric("ModelCacheHit", "SampleCount"), lambda it: it == 2)
    assert library.metric("ModelCacheHit") == 0


def test_requests_at_once_load_a_model_once_and_go_where_it_is(library: Library) -> None:
    library.put("a.tar.gz", "a-0")
    library.open(instances=2)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: library.ask("a.tar.gz"), range(12)))

    assert answers == ["a-0"] * 12
    until(lambda: library.metric("ModelCacheHit", "SampleCount"), lambda it: it == 12)
    assert library.metric("ModelLoadingTime", "SampleCount") == 1


def test_a_server_that_crashes_loads_its_models_again(library: Library) -> None:
    library.put("a.tar.gz", "a-0")
    library.open()
    with pytest.raises(library.runtime.exceptions.ModelError):
        library.ask("a.tar.gz", "die")

    def answered() -> bool:
        try:
            return library.ask("a.tar.gz") == "a-0"
        except (library.runtime.exceptions.ModelError, library.runtime.exceptions.ServiceUnavailable):
            return False

    assert until(answered, bool)


def test_what_cannot_be_loaded(library: Library) -> None:
    library.put("broken.tar.gz", "broken")
    library.rig.upload(f"{library.prefix}text.tar.gz", b"no archive")
    library.open()

    code, message = refused(lambda: library.ask("absent.tar.gz"))
    assert code == "ValidationError"
    assert message.startswith(
        f"Failed to download model data(bucket: {library.bucket}, key: {library.prefix}absent.tar.gz)."
    )
    code, message = refused(lambda: library.ask("text.tar.gz"))
    assert (code, "valid tar.gz archive" in message) == ("ValidationError", True)
    with pytest.raises(library.runtime.exceptions.ModelError, match="weights of another model"):
        library.ask("broken.tar.gz")
    code, message = refused(library.invoke)
    assert (code, "requires target model header" in message) == ("ValidationError", True)
    library.put("broken.tar.gz", "mended-0")
    assert library.ask("broken.tar.gz") == "mended-0"  # a failure is not kept


def test_what_multi_model_endpoints_do_not_have(library: Library) -> None:
    name = library.rig.unique("library")
    without = {key: value for key, value in library.container().items() if key != "ModelDataUrl"}
    single = {"Image": "image", "MultiModelConfig": {"ModelCacheSetting": "Enabled"}}
    for container, said in ((without, "ModelDataUrl"), (single, "MultiModelConfig")):
        code, message = refused(
            lambda container=container: library.sagemaker.create_model(  # type: ignore[misc]
                ModelName=name, ExecutionRoleArn=library.rig.role, PrimaryContainer=container
            )
        )
        assert code == "ValidationException"
        assert said in message
    library.sagemaker.create_model(
        ModelName=name, ExecutionRoleArn=library.rig.role, PrimaryContainer=library.container()
    )
    variant = {"VariantName": "main", "ModelName": name}
    instances = {**variant, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    serverless = {**variant, "ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1}}
    queue = {"OutputConfig": {"S3OutputPath": f"s3://{library.bucket}/out"}}
    for config in (
        {"ProductionVariants": [serverless]},
        {"ProductionVariants": [instances], "AsyncInferenceConfig": queue},
    ):
        code, message = refused(
            lambda config=config: library.sagemaker.create_endpoint_config(EndpointConfigName=name, **config)  # type: ignore[misc]
        )
        assert (code, "not supported with" in message) == ("ValidationException", True)
    assert json.dumps(library.sagemaker.describe_model(ModelName=name)["PrimaryContainer"]["Mode"])
