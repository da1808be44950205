"""Where processes are put, on nodes that are made up."""

import pytest

from posttrain.run import placement
from posttrain.run.placement import Node, Place, Placement, PlacementError, on_cores


def ids(places: list[Place]) -> str:
    return "".join(place.strategy.node_id[0] for place in places)  # pyright: ignore


def node(name: str, cpus: int = 0, gpus: int = 0) -> Node:
    return Node(name * 56, f"10.0.0.{ord(name)}", cpus, gpus)


def test_learners_stay_together_and_engines_spread_over_the_cores():
    both = [node("a", cpus=2), node("b", cpus=2)]
    assert ids(on_cores(2, both, spread=False)) == "aa"
    assert ids(on_cores(3, both, spread=False)) == "aab"
    assert ids(on_cores(2, both, spread=True)) == "ab"
    assert ids(on_cores(3, [node("a", cpus=1), node("b", cpus=4)], spread=True)) == "bbb"
    assert sorted(ids(on_cores(6, both, spread=False))) == [*"aaabbb"]  # more than there are cores


def test_one_node_is_left_to_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement, "nodes", lambda: [node("a", cpus=2, gpus=8)])
    on_cpu = Placement(use_gpu=False, sharing="separate")
    assert (on_cpu.engines(2, 1), on_cpu.learners(2)) == ([Place()] * 2, [Place()] * 2)
    on_gpu = Placement(use_gpu=True, sharing="separate")
    assert (on_gpu.engines(1, 4), on_gpu.learners(4)) == ([Place(4)], [Place(1)] * 4)


def test_an_engine_does_not_span_nodes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement, "nodes", lambda: [node("a", gpus=4), node("b", gpus=2)])
    put = Placement(use_gpu=True, sharing="separate")
    for places in (put.engines, put.readers):
        with pytest.raises(PlacementError, match=r"takes 6 GPUs of one node.*10.0.0.97 4, 10.0.0.98 2"):
            places(1, gpus_each=6)
