"""What a joined cluster's processes are told, and what is said where it cannot be joined."""

from typing import Any

import pytest

from posttrain.run import cluster as clusters
from posttrain.run.cluster import ClusterError, cluster, forwarded


def test_variables_of_hubs_networks_and_named_ones_go_to_every_node(monkeypatch: pytest.MonkeyPatch):
    for name in ("HF_TOKEN", "NCCL_DEBUG", "no_proxy", "DATA_ROOT", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    told = forwarded(["DATA_ROOT"])
    assert told.keys() >= {"HF_TOKEN", "NCCL_DEBUG", "no_proxy", "DATA_ROOT"}
    assert not told.keys() & {"AWS_SECRET_ACCESS_KEY", "PATH", "HOME"}
    monkeypatch.delenv("DATA_ROOT")
    with pytest.raises(ClusterError, match=r"cluster.environment names DATA_ROOT, which is not set here"):
        forwarded(["DATA_ROOT"])


def test_a_cluster_that_refuses_is_an_error_that_explains_its_token(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: Any) -> None:
        raise RuntimeError("Unauthenticated: invalid token")

    monkeypatch.setattr(clusters.ray, "init", refuse)
    with (
        pytest.raises(ClusterError, match=r"head:6379 cannot be joined \(Unauthenticated.*get-auth-token"),
        cluster(num_cpus=None, num_gpus=0, object_store_mb=80, address="head:6379"),
    ):
        pass
