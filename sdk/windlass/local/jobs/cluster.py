"""The hosts of one job: ``algo-1`` to ``algo-N``, what each is told of the others, and under which address it finds them.

hosts = plan({"InstanceCount": 2, "InstanceType": "ml.m5.large"}, folder)
resource_config(hosts, hosts[0])        # resourceconfig.json of algo-1
etc_hosts(hosts, block=3)               # algo-1 is 127.16.3.1, algo-2 is 127.16.3.2
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from windlass.local.faults import Fault
from windlass.local.jobs.quotas import Quota
from windlass.local.processes import Child

HOMOGENEOUS = "homogeneousCluster"
"""What SageMaker calls the one group of a job that names none."""

MOST_HOSTS = 64
MASTER_PORT = 7777
"""What the training toolkit tells every script. On SageMaker each host has its own ports; here all jobs share them."""


@dataclass
class Host:
    """One of a job's machines.

    Attributes:
        name: ``algo-1``.
        group: the name of its instance group.
        folder: what it finds at ``/opt/ml``.
        quota: what it may use.
        reader: what reads its log.
        tail: the last lines that it wrote.
    """

    name: str
    group: str
    instance_type: str
    folder: Path
    quota: Quota
    child: Child | None = None
    reader: threading.Thread | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=200))

    @property
    def pid(self) -> int:
        """Of its process; 0 while there is none."""
        return self.child.pid if self.child and self.child.poll() is None else 0


def groups(resources: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Name, instance type and count of each instance group of a ResourceConfig."""
    named = resources.get("InstanceGroups")
    if named:
        return [(group["InstanceGroupName"], group["InstanceType"], group["InstanceCount"]) for group in named]
    return [(HOMOGENEOUS, resources.get("InstanceType", ""), resources.get("InstanceCount", 1))]


def check_limit(count: int, instance_type: str, noun: str) -> None:
    """Raise AWS's ResourceLimitExceeded for more hosts than there may be."""
    if count > MOST_HOSTS:
        raise Fault(
            "ResourceLimitExceeded",
            f"The account-level service limit '{instance_type} for {noun} usage' is {MOST_HOSTS} Instances, with current"
            f" utilization of 0 Instances and a request delta of {count} Instances. The local cloud starts as many processes"
            " on this machine.",
        )


def plan(resources: Mapping[str, Any], folder: Path, *, most_memory: int | None = None) -> list[Host]:
    """The hosts of a ResourceConfig, numbered through all groups, each in its own folder.

    Args:
        most_memory: bytes that each may use, instead of what its instance type has.
    """
    flat = [(group, kind) for group, kind, count in groups(resources) for _ in range(count)]
    return [
        Host(name, group, kind, folder / name, Quota(name, kind, folder / name, volume_gib(resources), most_memory))
        for name, (group, kind) in ((f"algo-{number}", one) for number, one in enumerate(flat, start=1))
    ]


def volume_gib(resources: Mapping[str, Any]) -> int:
    """VolumeSizeInGB of a ResourceConfig."""
    return int(resources.get("VolumeSizeInGB") or 1)


def exceeded(hosts: Sequence[Host]) -> str:
    """FailureReason of a job of which a host uses more than it may; nothing if none does."""
    return next((reason for host in hosts if (reason := host.quota.exceeded(host.pid))), "")


def resource_config(hosts: Sequence[Host], current: Host) -> dict[str, Any]:
    """``resourceconfig.json``, as one host finds it."""
    members: dict[str, list[Host]] = {}
    for host in hosts:
        members.setdefault(host.group, []).append(host)
    return {
        "current_host": current.name,
        "current_instance_type": current.instance_type,
        "current_group_name": current.group,
        "hosts": [host.name for host in hosts],
        "instance_groups": [
            {
                "instance_group_name": group,
                "instance_type": inside[0].instance_type,
                "hosts": [host.name for host in inside],
            }
            for group, inside in members.items()
        ],
        "network_interface_name": "lo",
    }


def etc_hosts(hosts: Sequence[Host], block: int) -> str:
    """``/etc/hosts`` with the job's hosts first: each has an address of its own on the loopback interface.

    Args:
        block: a number that no other running job has.
    """
    prefix = f"127.{16 + block // 250 % 200}.{block % 250}"
    own = "".join(f"{prefix}.{number}\t{host.name}\n" for number, host in enumerate(hosts, start=1))
    machine = Path("/etc/hosts")
    return own + (
        machine.read_text(encoding="utf-8", errors="replace") if machine.exists() else "127.0.0.1\tlocalhost\n"
    )


def free_port(taken: set[int]) -> int:
    """The first port from MASTER_PORT on that neither another job nor another program has."""
    for port in range(MASTER_PORT, MASTER_PORT + 2000):
        if port not in taken:
            with socket.socket() as probe:
                try:
                    probe.bind(("", port))
                except OSError:
                    continue
                return port
    raise OSError(f"No free port between {MASTER_PORT} and {MASTER_PORT + 2000}")
