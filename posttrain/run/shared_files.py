"""What all nodes of a cluster must see alike, looked at before anything starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from posttrain.run.placement import nodes

#: Seconds in which a node must tell what it sees.
LOOK_S = 120.0


class NotShared(RuntimeError):
    """A node does not see files that it needs."""


def check_shared(needed: Mapping[str, Sequence[Path]]) -> None:
    """Check that every node sees some files as this one does: as large.

    Args:
        needed: By what they are for, some files of each folder that has to be shared.

    Raises:
        NotShared: Naming folder and node.
    """
    others = nodes()[1:]
    paths = [path for each in needed.values() for path in each]
    if not others or not paths:
        return
    here = _sizes(paths)
    looking = [
        _look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(paths)
        for node in others
    ]
    for node, there in zip(others, ray.get(looking, timeout=LOOK_S), strict=True):
        for what, files in needed.items():
            wrong = next((path for path in files if there[str(path)] != here[str(path)]), None)
            if wrong is not None:
                raise NotShared(
                    f"node {node.address} does not see {wrong}, which it needs for {what}: share"
                    f" {wrong.parent} with it, by a network disk or an equal copy at the same path"
                )


def _sizes(paths: Sequence[Path]) -> dict[str, int]:
    """Return the size of each file; -1 where there is none."""
    return {str(path): path.stat().st_size if path.is_file() else -1 for path in paths}


@ray.remote(num_cpus=0)
def _look(paths: Sequence[Path]) -> dict[str, int]:
    """Look at files in a process of another node."""
    return _sizes(paths)
