"""Jobs of several hosts, which reach each other by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cloud.conftest import Rig
from tests.cloud.test_training import channel, finish, logged, run, start, unpacked, until

TWO = {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}


def said(rig: Rig, described: dict[str, Any]) -> dict[str, Any]:
    """What each host printed as JSON, by host."""
    assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
    found = [json.loads(line) for line in logged(rig, described["TrainingJobName"]) if line.startswith("{")]
    return {each["host"]: each for each in found}


def test_each_host_has_its_own_name_address_folder_and_log(rig: Rig) -> None:
    script = (
        "import json, os, pathlib, socket\n"
        "host = socket.gethostname()\n"
        "pathlib.Path(f'/opt/ml/model/{host}.txt').write_text(host)\n"
        "pathlib.Path('/opt/ml/model/both.txt').write_text(host)\n"
        "print(json.dumps({'host': host, 'config': json.load(open('/opt/ml/input/config/resourceconfig.json')),\n"
        "    'addresses': [socket.gethostbyname(name) for name in ('algo-1', 'algo-2')],\n"
        "    'rank': os.environ['SM_CURRENT_HOST_RANK'],\n"
        "    'model': sorted(os.listdir('/opt/ml/model'))}))\n"
    )

    described = run(rig, script, ResourceConfig=TWO)

    hosts = said(rig, described)
    assert sorted(hosts) == ["algo-1", "algo-2"]
    assert [hosts[name]["rank"] for name in sorted(hosts)] == ["0", "1"]
    assert hosts["algo-1"]["addresses"] == hosts["algo-2"]["addresses"]
    assert len(set(hosts["algo-1"]["addresses"])) == 2
    assert hosts["algo-2"]["config"]["current_host"] == "algo-2"
    assert hosts["algo-2"]["config"]["hosts"] == ["algo-1", "algo-2"]
    assert hosts["algo-2"]["model"] == ["algo-2.txt", "both.txt"]
    model = unpacked(rig, described["ModelArtifacts"]["S3ModelArtifacts"])
    assert model == {"algo-1.txt": "algo-1", "algo-2.txt": "algo-2", "both.txt": "algo-1"}
    streams = rig.client("logs").describe_log_streams(
        logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix=f"{described['TrainingJobName']}/"
    )["logStreams"]
    assert [stream["logStreamName"].split("/")[1].rsplit("-", 1)[0] for stream in streams] == ["algo-1", "algo-2"]


ALL_REDUCE = """
import json, os, socket
import torch, torch.distributed as dist
dist.init_process_group("gloo")
ones = torch.full((3,), float(dist.get_rank() + 1))
dist.all_reduce(ones)
print(json.dumps({"host": socket.gethostname(), "rank": dist.get_rank(), "world": dist.get_world_size(), "sum": ones.tolist()}))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("way", ["script", "torchrun over two instance groups", "hyperparameter"])
def test_torch_distributed_works_over_two_hosts(rig: Rig, way: str) -> None:
    environment = (
        "import os\n"
        "os.environ |= {'MASTER_ADDR': os.environ['SM_MASTER_ADDR'], 'MASTER_PORT': os.environ['SM_MASTER_PORT'],\n"
        "    'RANK': os.environ['SM_CURRENT_HOST_RANK'], 'WORLD_SIZE': os.environ['SM_HOST_COUNT']}\n"
    )
    torchrun = (
        "torchrun --nnodes=$SM_HOST_COUNT --nproc_per_node=1 --node_rank=$SM_CURRENT_HOST_RANK"
        " --master_addr=algo-1 --master_port=$SM_MASTER_PORT reduce.py\n"
    )
    files = {"train.sh": torchrun, "reduce.py": ALL_REDUCE}
    script, hyperparameters = {
        "script": (environment + ALL_REDUCE, {}),
        "torchrun over two instance groups": ("", {"sagemaker_program": "train.sh"}),
        "hyperparameter": (ALL_REDUCE, {"sagemaker_torch_distributed_enabled": "true"}),
    }[way]

    groups = [
        {"InstanceGroupName": name, "InstanceType": kind, "InstanceCount": 1}
        for name, kind in (("one", "ml.m5.xlarge"), ("other", "ml.c5.xlarge"))
    ]
    resources = {"InstanceGroups": groups, "VolumeSizeInGB": 1} if "groups" in way else TWO

    described = run(rig, script, files=files, hyperparameters=hyperparameters, ResourceConfig=resources)

    hosts = said(rig, described)
    assert {name: (host["rank"], host["world"], host["sum"]) for name, host in hosts.items()} == {
        "algo-1": (0, 2, [3.0] * 3),
        "algo-2": (1, 2, [3.0] * 3),
    }


def test_instance_groups_differ_in_type_and_data(rig: Rig) -> None:
    rig.upload("groups/a.csv", b"1")
    groups = [
        {"InstanceGroupName": "data", "InstanceType": "ml.c5.xlarge", "InstanceCount": 2},
        {"InstanceGroupName": "gpu", "InstanceType": "ml.g5.xlarge", "InstanceCount": 1},
    ]
    script = (
        "import json, os\n"
        "names = ('SM_CURRENT_INSTANCE_GROUP', 'SM_CURRENT_INSTANCE_TYPE', 'SM_CURRENT_INSTANCE_GROUP_HOSTS',"
        " 'SM_INSTANCE_GROUPS', 'SM_CHANNEL_TRAINING')\n"
        "print(json.dumps({'host': os.environ['SM_CURRENT_HOST'], 'facts': [os.environ.get(name) for name in names]}))\n"
    )

    described = run(
        rig,
        script,
        ResourceConfig={"InstanceGroups": groups, "VolumeSizeInGB": 1},
        InputDataConfig=channel(f"s3://{rig.bucket}/groups", source={"InstanceGroupNames": ["data"]}),
    )

    hosts, every = said(rig, described), '["data","gpu"]'
    data = ["data", "ml.c5.xlarge", '["algo-1","algo-2"]', every, "/opt/ml/input/data/training"]
    assert {name: host["facts"] for name, host in hosts.items()} == {
        "algo-1": data,
        "algo-2": data,
        "algo-3": ["gpu", "ml.g5.xlarge", '["algo-3"]', every, None],
    }
    assert described["ResourceConfig"]["InstanceGroups"] == groups


def test_the_death_of_one_host_fails_the_job_and_ends_the_others(rig: Rig) -> None:
    script = (
        "import os, signal, socket, time\n"
        "if socket.gethostname() == 'algo-2':\n"
        "    raise RuntimeError('broken interconnect')\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('told to end', flush=True), os._exit(0)))\n"
        "print('waiting', flush=True)\n"
        "time.sleep(600)\n"
    )

    described = run(rig, script, ResourceConfig=TWO)

    assert described["TrainingJobStatus"] == "Failed"
    assert described["FailureReason"].startswith("AlgorithmError: RuntimeError: broken interconnect")


def test_stop_reaches_every_host(rig: Rig) -> None:
    script = (
        "import pathlib, signal, socket, sys, time\n"
        "def save(*_):\n"
        "    pathlib.Path(f'/opt/ml/model/{socket.gethostname()}').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', socket.gethostname(), flush=True)\n"
        "time.sleep(600)\n"
    )
    job = start(rig, script, ResourceConfig=TWO)
    for host in ("algo-1", "algo-2"):
        until(rig, job, f"ready {host}")

    rig.client("sagemaker").stop_training_job(TrainingJobName=job)

    described = finish(rig, job)
    assert described["TrainingJobStatus"] == "Stopped"
    assert set(unpacked(rig, described["ModelArtifacts"]["S3ModelArtifacts"])) == {"algo-1", "algo-2"}
