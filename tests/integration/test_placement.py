"""Places on GPUs that Ray only believes in: two nodes on this machine, of four GPUs each."""

import os
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from posttrain.run import placement
from posttrain.run.actors import Actor, kill_all
from posttrain.run.placement import Place, Placement, PlacementError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("placement")]


class Probe:
    """Tells where it lives, and which GPUs it sees."""

    def look(self) -> tuple[str, tuple[str, ...]]:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return ray.get_runtime_context().get_node_id(), tuple(seen.split(","))


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # a run without GPUs has hidden them from here on
        yield from started()


def started() -> Iterator[None]:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 4})
    try:
        nodes.add_node(num_cpus=1, num_gpus=4)
        ray.init(address=nodes.address, log_to_driver=False)
        nodes.wait_for_nodes()
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def looked(*places: Place) -> list[tuple[str, tuple[str, ...]]]:
    actors = [Actor(Probe, use_gpu=True, place=place) for place in places]
    try:
        return ray.get([actor.call(Probe.look) for actor in actors], timeout=120)
    finally:
        kill_all(actors)


@pytest.mark.usefixtures("two_nodes")
def test_engines_and_learners_have_gpus_of_their_own_close_together():
    put = Placement(use_gpu=True, sharing="separate")
    try:
        seen = looked(*put.engines(2, gpus_each=2), *put.learners(4))
    finally:
        put.release()
    engines, learners = seen[:2], seen[2:]
    assert [len(gpus) for _, gpus in seen] == [2, 2, 1, 1, 1, 1]
    assert len({node for node, _ in learners}) == 1
    assert len({node for node, _ in engines}) == 1
    taken = [(node, gpu) for node, gpus in seen for gpu in gpus]
    assert len(set(taken)) == 8


@pytest.mark.usefixtures("two_nodes")
def test_shared_gpus_are_those_of_the_learners():
    put = Placement(use_gpu=True, sharing="shared")
    try:
        seen = looked(*put.engines(4, gpus_each=2), *put.learners(8))
    finally:
        put.release()
    engines, learners = seen[:4], seen[4:]
    for number, (node, gpus) in enumerate(engines):
        own = learners[2 * number : 2 * number + 2]
        assert {at for at, _ in own} == {node}
        assert {gpu for _, each in own for gpu in each} == set(gpus)
    assert len({(node, gpu) for node, gpus in learners for gpu in gpus}) == 8


@pytest.mark.usefixtures("two_nodes")
def test_gpus_that_are_not_free_are_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement, "READY_S", 3.0)
    put = Placement(use_gpu=True, sharing="separate")
    try:
        put.engines(2, gpus_each=4)
        with pytest.raises(PlacementError, match="2 learners of 1 GPUs each found no room within 3 s"):
            put.learners(2)
    finally:
        put.release()
