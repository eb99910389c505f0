"""The registry: versions with evidence, names that move, gates, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

import windlass as wl
from tests.cloud.conftest import Rig
from windlass import aliases, artifact, aws, entry, foundation, signing, transfer
from windlass.cli import main
from windlass.errors import Conflict, CorruptArtifact, DiskFull, InvalidInput, NotFound, PolicyRefused
from windlass.foundation import Contract
from windlass.optimize.export import export
from windlass.registry import ModelVersion, import_version, register


@pytest.fixture(scope="module")
def project(rig: Rig) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rig.env.items():
            patch.setenv(name, value)
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        name = rig.unique("p")
        foundation.deploy(name)
        yield name
        foundation.destroy(name)


@pytest.fixture
def group(rig: Rig) -> str:
    return rig.unique("model")


@pytest.fixture
def model(tmp_path: Path, rig: Rig) -> Path:
    folder = tmp_path / "model"
    (folder / "code").mkdir(parents=True)
    (folder / "w.safetensors").write_bytes(random.Random(rig.unique("seed")).randbytes(4096))
    (folder / "code" / "inference.py").write_text("def model_fn(folder):\n    return lambda data: data\n")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    tensor = {"name": "x", "dtype": "float32", "shape": ["batch", 2]}
    signature = {
        "inputs": [tensor],
        "outputs": [tensor],
        "content_types": ["text/csv", "application/json"],
        "example": {"x": [[1, 2]]},
    }
    (folder / "code" / "signature.json").write_text(json.dumps(signature))
    return folder


def package(version: ModelVersion) -> dict[str, Any]:
    answer: dict[str, Any] = aws.client("sagemaker").describe_model_package(ModelPackageName=version.arn)
    return answer


def test_a_vendors_image_serves_files_that_we_could_not(project: str, group: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidInput, match=r"no inference\.py goes with the model"):
        register(tmp_path, group, project=project)
    version = register(tmp_path, group, project=project, image="vllm/vllm-openai:v1")
    (container,) = package(version)["InferenceSpecification"]["Containers"]
    assert container["Image"] == "vllm/vllm-openai:v1"
    assert not container.get("Environment")


def test_a_folder_becomes_a_version_with_lineage(project: str, group: str, model: Path, tmp_path: Path) -> None:
    first = register(model, group, project=project)
    (model / "code" / "inference.py").write_text("changed = True\n")
    second = register(model, group, project=project, license="MIT")

    assert (first.name, second.name) == (f"{group}/1", f"{group}/2")
    assert second.metadata["parent"] == first.name
    assert (first.manifest.license, second.manifest.license) == ("apache-2.0", "MIT")
    assert artifact.diff(first.manifest, second.manifest).changed == ("code/inference.py",)
    assert second.fetch(tmp_path / "back").manifest == second.manifest
    inference = package(first)["InferenceSpecification"]
    assert inference["SupportedContentTypes"] == ["text/csv", "application/json"]
    assert inference["Containers"][0]["ModelDataSource"]["S3DataSource"] == {
        "S3Uri": first.model_uri,
        "S3DataType": "S3Prefix",
        "CompressionType": "None",
    }


def test_lineage_of_a_plain_folder_is_its_checkout_and_the_data_named(
    project: str, group: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "data.csv").write_text("1,2\n")
    git = ["git", "-C", str(model), "-c", "user.name=n", "-c", "user.email=e@example.com"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    clean = register(model, group, project=project, data=tmp_path / "data.csv")
    (model / "code" / "inference.py").write_text("changed = True\n")
    dirty = register(model, group, project=project)

    digest = artifact.digest_folder(tmp_path / "data.csv")
    assert clean.manifest.source == {"git_commit": commit, "data_digest": digest}
    assert (clean.metadata["git-commit"], clean.metadata["data-digest"]) == (commit, digest)
    assert dirty.metadata["git-commit"] == f"{commit}-dirty"
    assert dirty.manifest.source == {"git_commit": f"{commit}-dirty"}


def test_an_archive_for_what_reads_nothing_else(project: str, group: str, model: Path, tmp_path: Path) -> None:
    version = register(model, group, project=project, archive=True)

    assert version.model_uri.endswith("/model.tar.gz")
    assert package(version)["InferenceSpecification"]["Containers"][0]["ModelDataUrl"] == version.model_uri
    assert version.fetch(tmp_path / "back").digest == version.manifest.digest == artifact.build(model).digest


def test_a_decision_says_who_and_why(project: str, group: str, model: Path) -> None:
    version = register(model, group, project=project)

    decided = version.approve("it is good").move_to("Staging", "for a week")

    assert (decided.approval, decided.approval_note, decided.stage) == ("Approved", "it is good", "Staging")
    assert decided.metadata["decided-by"].startswith("arn:aws")
    assert ModelVersion.latest(group) == decided
    assert version.reject("it was not").approval == "Rejected"
    with pytest.raises(NotFound, match="no version is Approved"):
        ModelVersion.latest(group)
    assert ModelVersion.latest(group, approval=None).approval_note == "it was not"


def test_an_approval_at_once_says_who_too(project: str, group: str, model: Path) -> None:
    version = register(model, group, project=project, approve=True)

    assert version.approval == "Approved"
    assert version.metadata["decided-by"].startswith("arn:aws")


def test_a_dry_run_writes_nothing(project: str, group: str, model: Path) -> None:
    plan = register(model, group, project=project, dry_run=True)

    assert [request.operation for request in plan.requests] == ["create_model_package_group", "create_model_package"]
    assert not aws.exists(plan.uploads[0].uri + "windlass.json")
    with pytest.raises(NotFound):
        ModelVersion.list(group)


# ------------------------------------------------------------------------------------------------------------------ aliases


def test_an_alias_names_a_version_and_moves(project: str, group: str, model: Path) -> None:
    register(model, group, project=project).alias("champion", project=project)
    second = register(model, group, project=project, license="MIT")

    assert ModelVersion.from_name(f"{group}@champion", project=project).version == 1
    second.alias("champion", expected=1, project=project)
    assert ModelVersion.from_name(f"{group}@champion", project=project) == second
    arn = aws.client("sagemaker").describe_model_package_group(ModelPackageGroupName=group)["ModelPackageGroupArn"]
    assert {"Key": "windlass:alias:champion", "Value": "2"} in aws.client("sagemaker").list_tags(ResourceArn=arn)[
        "Tags"
    ]
    with pytest.raises(NotFound, match="There are: champion"):
        ModelVersion.from_name(f"{group}@shadow", project=project)


def test_of_two_who_move_an_alias_one_is_told(project: str, group: str, model: Path) -> None:
    version = register(model, group, project=project)
    version.alias("champion", expected=None, project=project)

    with pytest.raises(Conflict, match="it names version 1, not version 7"):
        version.alias("champion", expected=7, project=project)
    with pytest.raises(Conflict, match="it names version 1, not nothing"):
        version.alias("champion", expected=None, project=project)


def test_a_move_at_the_same_moment_is_refused_by_s3(
    project: str, group: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(model, group, project=project)
    version.alias("champion", project=project)
    read = aliases._read

    def read_and_be_overtaken(key: str, bucket: str, where: str) -> Any:
        seen = read(key, bucket, where)
        aws.put_bytes(f"s3://{bucket}/{key}", b'{"champion": 9}')
        return seen

    monkeypatch.setattr(aliases, "_read", read_and_be_overtaken)
    with pytest.raises(Conflict, match="somebody else moved an alias"):
        version.alias("champion", expected=1, project=project)


def test_of_many_who_move_an_alias_at_once_exactly_one_does(project: str, group: str, model: Path) -> None:
    version = register(model, group, project=project)
    start = threading.Barrier(8)

    def race(_: int) -> bool:
        start.wait()
        try:
            version.alias("champion", expected=None, project=project)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(race, range(8))) == 1
    assert ModelVersion.from_name(f"{group}@champion", project=project) == version


def test_the_latest_of_rejected_versions_is_none(project: str, group: str, model: Path) -> None:
    register(model, group, project=project).reject("no evidence")

    with pytest.raises(NotFound, match=f"no approved version.*{group}/1 \\(Rejected\\)"):
        ModelVersion.from_name(group)
    with pytest.raises(NotFound, match="no version is Approved"):
        ModelVersion.latest(group)
    assert ModelVersion.latest(group, approval=None).approval == "Rejected"


@pytest.mark.parametrize("name", ["Champion", "", "a b", "1st"])
def test_what_is_no_alias_is_said(project: str, group: str, model: Path, name: str) -> None:
    version = register(model, group, project=project)
    with pytest.raises(InvalidInput, match="not an alias"):
        version.alias(name, project=project)


# -------------------------------------------------------------------------------------------------------- gates, signatures


def test_register_lists_each_gate_that_is_shut(project: str, group: str, model: Path) -> None:
    (model / "model.pkl").write_bytes(b"x")
    policy = wl.Policy(min_metrics={"accuracy": 0.9}, licenses=("MIT",), max_size_mb=0.001)

    with pytest.raises(PolicyRefused) as caught:
        register(model, group, project=project, policy=policy)

    assert len(caught.value.gates) == 4
    for words in ("accuracy was not measured", "model.pkl", "apache-2.0; allowed: MIT", "above 0.001"):
        assert words in str(caught.value)
    with pytest.raises(NotFound):
        ModelVersion.list(group)


@pytest.fixture(scope="module")
def key(project: str) -> str:
    made = aws.client("kms").create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")
    return str(made["KeyMetadata"]["Arn"])


def test_a_signed_version_passes_and_says_who_signed(project: str, group: str, model: Path, key: str) -> None:
    version = register(model, group, project=project, sign_with=key, policy=wl.Policy(signed_by=(key,)))

    ModelVersion.from_name(version.name).verify(wl.Policy(signed_by=(key,), require_signature=True))
    assert version.signature is not None
    assert version.signature.key_arn == key


def test_a_changed_manifest_is_not_deployed(project: str, group: str, model: Path, key: str) -> None:
    version = register(model, group, project=project, sign_with=key, approve=True)
    body = aws.get_bytes(version.model_uri + "windlass.json").replace(b"apache-2.0", b"mit-------")
    aws.put_bytes(version.model_uri + "windlass.json", body)

    with pytest.raises(CorruptArtifact, match="not the registered one"):
        wl.deploy(version.name, project=project, dry_run=True)


@pytest.mark.parametrize("archive", [False, True])
def test_changed_weights_are_found_by_what_reads_them_and_not_by_deploy(
    project: str, group: str, model: Path, tmp_path: Path, archive: bool
) -> None:
    version = register(model, group, project=project, approve=True, archive=archive)
    assert isinstance(version, ModelVersion)
    changed = version.model_uri if archive else version.model_uri + "w.safetensors"
    body = bytearray(aws.get_bytes(changed))
    body[2000] ^= 1
    aws.put_bytes(changed, bytes(body))

    with pytest.raises(CorruptArtifact):
        version.fetch(tmp_path / "fetched")
    with pytest.raises(CorruptArtifact):
        version.export(tmp_path / "version.tar.gz")
    with pytest.raises(CorruptArtifact):
        version.promote(project=project, model=f"{group}-copy")

    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(NotFound):
        ModelVersion.list(f"{group}-copy")
    assert wl.deploy(version.name, project=project, dry_run=True).requests  # as docs/bundles.md says


def test_a_forged_digest_is_found_by_its_signature(project: str, group: str, model: Path, key: str) -> None:
    version = register(model, group, project=project, sign_with=key, approve=True)
    other = hashlib.sha256(b"other").hexdigest()
    assert version.signature is not None

    with pytest.raises(CorruptArtifact, match="not of this manifest"):
        signing.verify(other, version.signature)


def test_a_key_that_cannot_sign_is_refused(project: str, group: str, model: Path) -> None:
    with pytest.raises(InvalidInput, match="not for signing"):
        register(model, group, project=project, sign_with=Contract.load(project).key_arn)


def test_deploy_asks_the_policy(project: str, group: str, model: Path, key: str) -> None:
    version = register(model, group, project=project, approve=True)

    with pytest.raises(PolicyRefused, match="signed by nobody"):
        wl.deploy(version.name, project=project, policy=wl.Policy(signed_by=(key,)), dry_run=True)
    plan = wl.deploy(version.name, project=project, policy=wl.Policy(licenses=("apache-2.0",)), dry_run=True)
    assert "ModelDataSource" in plan.requests[0].params["PrimaryContainer"]


# ---------------------------------------------------------------------------------------------------------- export, delete


def test_a_version_travels_as_a_file(project: str, group: str, model: Path, tmp_path: Path, key: str) -> None:
    version = register(model, group, project=project, sign_with=key, approve=True)

    path = version.export(tmp_path / "version.tar.gz")
    copy = import_version(path, f"{group}-copy", project=project)

    assert copy.metadata["imported-from"] == version.name
    assert copy.metadata["digest"] == version.metadata["digest"]
    assert copy.approval == "PendingManualApproval"
    copy.verify(wl.Policy(signed_by=(key,)))
    assert path.read_bytes() == version.export(tmp_path / "again.tar.gz").read_bytes()


@pytest.fixture(scope="module")
def production(rig: Rig, project: str) -> Iterator[str]:
    """Another project's foundation, and so another bucket and role."""
    name = rig.unique("prod")
    foundation.deploy(name)
    yield name
    foundation.destroy(name)


def test_a_version_is_promoted_as_a_role_of_the_other_side(
    rig: Rig, project: str, production: str, group: str, model: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(model, group, project=project, sign_with=key, approve=True, evaluation=evaluated("e", "1101"))
    trust = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = rig.client("iam").create_role(RoleName=rig.unique("deployer"), AssumeRolePolicyDocument=document)["Role"][
        "Arn"
    ]
    before = boto3.DEFAULT_SESSION

    plan = version.promote(role_arn=role, project=production, model=f"{group}-prod", dry_run=True)

    assert isinstance(plan, wl.Plan)
    assert plan.actions[:5] == ("sts:AssumeRole", "s3:GetObject", "kms:Decrypt", "kms:GenerateDataKey", "s3:PutObject")
    assert f"reads {version.model_uri} as you, writes as {role}" in str(plan)
    assert Contract.load(production).bucket in plan.uploads[0].uri
    with pytest.raises(NotFound):
        ModelVersion.list(f"{group}-prod")

    seen: list[str] = []
    enter = entry.enter

    def entered(*arguments: Any, **options: Any) -> Any:
        seen.append(aws.client("sts").get_caller_identity()["Arn"])
        return enter(*arguments, **options)

    monkeypatch.setattr(entry, "enter", entered)
    copy = version.promote(role_arn=role, project=production, model=f"{group}-prod")

    assert isinstance(copy, ModelVersion)
    assert role.rpartition("/")[2] in seen[0]
    assert boto3.DEFAULT_SESSION is before
    assert copy.model_uri.startswith(f"s3://{Contract.load(production).bucket}/")
    assert (copy.approval, copy.metadata["promoted-from"]) == ("PendingManualApproval", version.arn)
    assert copy.metadata["digest"] == version.metadata["digest"]
    assert copy.evaluation == version.evaluation
    copy.verify(wl.Policy(signed_by=(key,)))


def test_the_plan_says_what_another_account_must_be_allowed(project: str, group: str, model: Path, key: str) -> None:
    own = "123456789012.dkr.ecr.us-east-1.amazonaws.com/mine:1"
    version = register(model, group, project=project, sign_with=key, image=own)
    account = version.arn.split(":")[4]
    version = dataclasses.replace(version, image=own.replace("123456789012", account))

    needs = transfer.needs(version, "arn:aws:iam::222222222222:role/windlass-deployer")

    assert f"the policy of key {key} must let account 222222222222 kms:Verify" in needs[1]
    assert f"the repository policy of {version.image} must let account 222222222222 pull it" in needs[2]
    assert len(transfer.needs(version, f"arn:aws:iam::{account}:role/other")) == 1


def test_an_archive_is_promoted_as_one_and_gates_hold(project: str, production: str, group: str, model: Path) -> None:
    version = register(model, group, project=project, archive=True)

    with pytest.raises(PolicyRefused, match="licence is apache-2"):
        version.promote(project=production, model=f"{group}-prod", policy=wl.Policy(licenses=("MIT",)))
    copy = version.promote(project=production, model=f"{group}-prod", approve=True)

    assert isinstance(copy, ModelVersion)
    assert (copy.approval, copy.model_uri.rpartition("/")[2]) == ("Approved", "model.tar.gz")
    assert copy.manifest == version.manifest


def test_a_disk_that_fills_keeps_nothing_of_an_export(project: str, group: str, model: Path, tmp_path: Path) -> None:
    version = register(model, group, project=project)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(DiskFull, match="no room"):
            version.export(disk / "version.tar.gz")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_damaged_file_is_not_imported(project: str, group: str, model: Path, tmp_path: Path) -> None:
    path = register(model, group, project=project).export(tmp_path / "version.tar.gz")
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 4
    path.write_bytes(body)

    with pytest.raises(CorruptArtifact):
        import_version(path, f"{group}-copy", project=project)
    with pytest.raises(NotFound):
        ModelVersion.list(f"{group}-copy")


def test_what_an_alias_names_is_not_deleted(project: str, group: str, model: Path) -> None:
    version = register(model, group, project=project).alias("champion", project=project)
    other = register(model, group, project=project, license="MIT")

    with pytest.raises(Conflict, match="champion"):
        version.delete(project=project)
    other.delete(project=project)

    assert ModelVersion.list(group) == [version.name]


def test_what_is_live_is_not_deleted(project: str, group: str, model: Path) -> None:
    version = register(model, group, project=project, approve=True)
    endpoint = wl.deploy(version.name, project=project)

    with pytest.raises(Conflict, match=endpoint.config):
        version.delete(project=project)
    endpoint.delete()

    version.delete(project=project)
    assert ModelVersion.list(group) == []


# ------------------------------------------------------------------------------------------------- comparison, command line


def evaluated(name: str, correct: str) -> wl.Run:
    run = wl.Run(name, f"arn:{name}", "Completed", kind="evaluate", metrics={"test:accuracy": correct.count("1") / 100})
    share = {"value": correct.count("1") / len(correct)}
    run.__dict__["evaluation"] = {
        "multiclass_classification_metrics": {"accuracy": share},
        "samples": len(correct),
        "correct": correct,
        "evaluation_set": "the same",
    }
    return run


@pytest.fixture
def versions(project: str, group: str, model: Path) -> list[ModelVersion]:
    worse = register(model, group, project=project, evaluation=evaluated("first", "1" * 60 + "0" * 40))
    (model / "more.txt").write_text("more")
    return [worse, register(model, group, project=project, evaluation=evaluated("second", "1" * 95 + "0" * 5))]


def test_versions_are_compared_on_what_they_were_registered_with(versions: list[ModelVersion]) -> None:
    answer = versions[0].compare(versions[1].name)

    assert answer.better == versions[1].name
    assert (answer.only_first, answer.only_second) == (0, 35)


def test_the_evaluation_opens_and_shuts_gates(versions: list[ModelVersion]) -> None:
    policy = wl.Policy(min_metrics={"accuracy": 0.85})

    versions[1].verify(policy)
    with pytest.raises(PolicyRefused, match=r"accuracy is 0\.6"):
        versions[0].verify(policy)


def test_the_commands_of_a_version_s_life(
    versions: list[ModelVersion], project: str, group: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, path = tmp_path / "page.html", tmp_path / "version.tar.gz"
    first, second = (version.name for version in versions)

    def said(*arguments: str, status: int = 0) -> str:
        assert main(["model", *arguments, "--project", project]) == status, capsys.readouterr().err
        output = capsys.readouterr()
        return output.out if status == 0 else output.err

    assert f"{second} is better" in said("compare", first, second, "--html", str(page))
    assert second in page.read_text()
    assert json.loads(said("compare", first, second, "--json"))["better"] == second
    said("alias", second, "champion")
    assert "names version 2, not version 1" in said("alias", first, "champion", "--expected", "1", status=1)
    assert main(["versions", group, "--project", project]) == 0
    assert "champion" in capsys.readouterr().out
    assert "sagemaker:CreateModelPackage" in said("promote", second, "--model", f"{group}-prod", "--dry-run")
    assert f"{group}-prod/1" in said("promote", second, "--model", f"{group}-prod", "--to-project", project)
    said("export", f"{group}@champion", str(path))
    assert f"{group}-copy/1" in said("import", str(path), "--model", f"{group}-copy")
    assert "champion" in said("delete", second, "--yes", status=1)
    said("delete", first, "--yes")
    assert ModelVersion.list(group) == [second]
    assert json.loads(said("show", f"{group}@champion", "--json"))["version"] == 2
    assert "is what was registered, signed by nobody" in said("check", second)
    assert said("fetch", second, str(tmp_path / "fetched")).strip() == versions[1].manifest.digest
    assert "Staging" in said("stage", second, "Staging", "--why", "to be tried")
    assert "is not an alias" in said("unalias", second, status=1)
    said("unalias", f"{group}@champion")
    assert "no alias 'champion'" in said("show", f"{group}@champion", status=1)
    said("delete", second, "--yes")


def test_register_and_check_a_folder_from_the_command_line(
    project: str, group: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("licenses: [MIT]\nrequire_signature: true\n")
    command = ["register", str(model), "--model", group, "--project", project, "--policy", str(policy)]

    assert main(command) == 1
    assert "licence is apache-2.0" in capsys.readouterr().err
    assert main([*command, "--license", "MIT", "--approve"]) == 0
    ModelVersion.from_name(group).fetch(tmp_path / "back")
    assert main(["model", "verify", str(tmp_path / "back")]) == 0
    assert ModelVersion.from_name(group).metadata["digest"] in capsys.readouterr().out
    assert main(["model", "diff", str(tmp_path / "back"), str(tmp_path / "back")]) == 0
    assert "no difference" in capsys.readouterr().out


def test_a_module_is_exported_registered_and_served(project: str, group: str, tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 1)
    folder = export(tmp_path / "exported", network, {"x": torch.zeros(2, 2)}, outputs=("y",))
    version = register(folder, group, project=project, approve=True, policy=wl.Policy(require_signature=True))
    endpoint = wl.deploy(version, project=project)
    try:
        assert version.manifest.signature is not None
        answer = endpoint.predict(version.manifest.signature.example).output["y"]
        assert answer == [pytest.approx([network.bias.item()], abs=1e-6)]
    finally:
        endpoint.delete()


def test_an_estimator_is_registered_as_it_is_and_served(project: str, group: str) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 2))
    model = LinearRegression().fit(rows, rows.sum(1))

    version = register(model, group, example=rows[:2], project=project, approve=True)
    endpoint = wl.deploy(version, project=project)
    try:
        assert (version.manifest.loader, version.manifest.pickles) == ("skops", ())
        assert endpoint.predict({"features": rows.tolist()}).output["prediction"] == pytest.approx(model.predict(rows))
    finally:
        endpoint.delete()
