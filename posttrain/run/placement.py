"""Where a run's engines and learners live: on which node, and on which of its GPUs.

On one node Ray needs no help. Over several, learners are kept together, since they talk the most, and engines
are put beside them: on GPUs by placement groups, on CPUs node by node, as far as their cores go. Engines and
learners that share their GPUs live in the same bundles of one group.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from posttrain.gpus import VISIBLE

Sharing = Literal["separate", "shared"]
Strategy = NodeAffinitySchedulingStrategy | PlacementGroupSchedulingStrategy

#: Seconds in which GPUs must be free that a run is to have; those of processes that have just ended are.
READY_S = 120.0


class PlacementError(RuntimeError):
    """The cluster has no room for a run's processes; the message says what was asked for."""


@dataclass(frozen=True)
class Place:
    """Where an actor lives, and what it takes there.

    Attributes:
        gpus: Number of GPUs that Ray reserves for it.
        strategy: The node, or the bundle of a placement group; None leaves it to Ray.
        environment: Variables that its process needs there.
    """

    gpus: int = 0
    strategy: Strategy | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's name for it.
        address: Where others reach it.
        cpus: Its cores.
        gpus: Its GPUs.
    """

    id: str
    address: str
    cpus: int
    gpus: int


def place_of_process() -> str:
    """Tell where this process lives: its node's address, and the GPUs that it sees if it has any."""
    gpus = os.environ.get(VISIBLE, "") if ray.cluster_resources().get("GPU") else ""
    return f"{ray.util.get_node_ip_address()}{f' (GPU {gpus})' if gpus else ''}"


def nodes() -> list[Node]:
    """Return the nodes that are alive and have something to compute on, this process's own first."""
    own = ray.get_runtime_context().get_node_id()
    found = [
        Node(
            str(each["NodeID"]),
            str(each["NodeManagerAddress"]),
            int(each["Resources"].get("CPU", 0)),
            int(each["Resources"].get("GPU", 0)),
        )
        for each in ray.nodes()
        if each["Alive"]
    ]
    able = [node for node in found if node.cpus or node.gpus]
    return sorted(able, key=lambda node: (node.id != own, node.address, node.id))


def this_node() -> NodeAffinitySchedulingStrategy:
    """Return the strategy that keeps a process on this one's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class Placement:
    """The places of a run's engines, and of the learners of the stage at hand.

    Args:
        use_gpu: Whether they take GPUs.
        sharing: Whether engines and learners have GPUs of their own, or the same ones.

    Example:
        placement = Placement(use_gpu=True, sharing="separate")
        engines = placement.engines(2, gpus_each=4)
        learners = placement.learners(8)
        placement.release_learners()
        placement.release()
    """

    def __init__(self, *, use_gpu: bool, sharing: Sharing) -> None:
        self._use_gpu, self._sharing = use_gpu, sharing
        self._engines: PlacementGroup | None = None
        self._learners: PlacementGroup | None = None
        self._readers: PlacementGroup | None = None
        self._each = 1

    def engines(self, count: int, gpus_each: int) -> list[Place]:
        """Return the places of engines, each on one node.

        Raises:
            PlacementError: If the cluster has no such GPUs, or they are not free.
        """
        found = nodes()
        if not self._use_gpu:
            return on_cores(count, found, spread=True)
        _require_node(found, gpus_each)
        if self._sharing == "separate" and _with_gpus(found) == 1:
            return [Place(gpus_each)] * count
        self._each = gpus_each
        self._engines = _reserved(count, gpus_each, "engines")
        if self._sharing == "separate":
            return [Place(gpus_each, _bundle(self._engines, index)) for index in range(count)]
        # Ray gives the GPUs to the learners; an engine is told which they are, and uses them in turn.
        ids = ray.get(
            [_visible.options(**_within(self._engines, i, gpus_each)).remote() for i in range(count)]
        )
        return [
            Place(0, _bundle(self._engines, index), {VISIBLE: ",".join(map(str, own))})
            for index, own in enumerate(ids)
        ]

    def learners(self, count: int) -> list[Place]:
        """Return the places of learners, as close together as there is room.

        Raises:
            PlacementError: If so many GPUs are not free.
        """
        found = nodes()
        if not self._use_gpu:
            return on_cores(count, found, spread=False)
        if self._sharing == "shared" and self._engines is not None:
            return [Place(1, _bundle(self._engines, index // self._each)) for index in range(count)]
        if _with_gpus(found) == 1:
            return [Place(1)] * count
        self._learners = _reserved(count, 1, "learners")
        return [Place(1, _bundle(self._learners, index)) for index in range(count)]

    def readers(self, count: int, gpus_each: int) -> list[Place]:
        """Return the places of engines that read what others play; no others share their GPUs.

        Raises:
            PlacementError: If the cluster has no such GPUs, or they are not free.
        """
        found = nodes()
        if not self._use_gpu:
            return on_cores(count, found, spread=True)
        _require_node(found, gpus_each)
        if _with_gpus(found) == 1:
            return [Place(gpus_each)] * count
        self._readers = _reserved(count, gpus_each, "engines that read")
        return [Place(gpus_each, _bundle(self._readers, index)) for index in range(count)]

    def release_readers(self) -> None:
        """Give back what was reserved for engines that read, which have ended."""
        if self._readers is not None:
            remove_placement_group(self._readers)
            self._readers = None

    def release_learners(self) -> None:
        """Give back what was reserved for learners, which have ended."""
        if self._learners is not None:
            remove_placement_group(self._learners)
            self._learners = None

    def release(self) -> None:
        """Give back everything that was reserved; whoever lived there has ended."""
        self.release_learners()
        self.release_readers()
        if self._engines is not None:
            remove_placement_group(self._engines)
            self._engines = None


def on_cores(count: int, found: Sequence[Node], spread: bool) -> list[Place]:
    """Return places of processes that take no GPU.

    Args:
        count: Their number.
        found: The nodes.
        spread: Whether they divide all cores between them; else they fill one node after another, a core
            each.
    """
    able = [node for node in found if node.cpus] or list(found)
    if len(able) < 2:
        return [Place()] * count
    taken = dict.fromkeys((node.id for node in able), 0)
    places: list[Place] = []
    for _ in range(count):
        room = [node for node in able if taken[node.id] < node.cpus]
        freest = max(able, key=lambda node: node.cpus / (taken[node.id] + 1))
        node = freest if spread or not room else room[0]
        taken[node.id] += 1
        places.append(Place(0, NodeAffinitySchedulingStrategy(node.id, soft=False)))
    return places


def _require_node(found: Sequence[Node], gpus_each: int) -> None:
    """Require a node with as many GPUs as an engine spans; its ranks are children of one process."""
    if max((node.gpus for node in found), default=0) < gpus_each:
        raise PlacementError(
            f"an engine takes {gpus_each} GPUs of one node, and the nodes have"
            f" {_listed(found)}: lower engine.tensor_parallel_size"
        )


def _reserved(count: int, gpus: int, what: str) -> PlacementGroup:
    """Reserve bundles of GPUs, on as few nodes as there is room on."""
    group = placement_group([{"GPU": gpus}] * count, strategy="PACK")
    try:
        ray.get(group.ready(), timeout=READY_S)
    except GetTimeoutError as error:
        remove_placement_group(group)
        free = int(ray.available_resources().get("GPU", 0))
        raise PlacementError(
            f"{count} {what} of {gpus} GPUs each found no room within {READY_S:.0f} s: the nodes have"
            f" {_listed(nodes())}, and {free} of these are free. Wait for other jobs, or ask for fewer"
        ) from error
    return group


def _bundle(group: PlacementGroup, index: int) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)


def _within(group: PlacementGroup, index: int, gpus: int) -> dict[str, Any]:
    return {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": _bundle(group, index)}


@ray.remote
def _visible() -> list[str]:
    """Return the GPUs that Ray gives to whoever takes all of a bundle."""
    return [str(each) for each in ray.get_gpu_ids()]


def _with_gpus(found: Sequence[Node]) -> int:
    return sum(node.gpus > 0 for node in found)


def _listed(found: Sequence[Node]) -> str:
    return ", ".join(f"{node.address} {node.gpus}" for node in found)
