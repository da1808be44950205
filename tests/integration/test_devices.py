"""What processes of a run see of the machine's GPUs, in a real Ray cluster."""

import os

import pytest
import ray

from posttrain.run.actors import Actor


class Looker:
    """Looks at its own environment."""

    def variable(self, name: str) -> str | None:
        """Return a variable's value; None where it is not set."""
        return os.environ.get(name)


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_without_gpus_hides_them_from_its_processes() -> None:
    """Ray itself leaves them visible to whoever takes none, and torch would use them."""
    looker = Actor(Looker, use_gpu=False)
    try:
        assert ray.get(looker.call(Looker.variable, "CUDA_VISIBLE_DEVICES"), timeout=120) == ""
        assert ray.get(looker.call(Looker.variable, "PYTORCH_ALLOC_CONF"), timeout=120) is None
    finally:
        looker.kill()
