"""The checks of `tests/gpu/test_learner_on_gpu.py`, on a CPU."""

import shutil
from pathlib import Path

import pytest
import torch

from tests import learners

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model, in a folder that images are written to."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def test_one_rank_has_its_collectives() -> None:
    learners.one_rank_has_its_collectives(CPU)


def test_shardings_agree(checkpoint: Path) -> None:
    learners.shardings_agree(CPU, checkpoint)


def test_checkpointing_saves_memory_and_nothing_else(checkpoint: Path) -> None:
    learners.checkpointing_saves_memory_and_nothing_else(CPU, checkpoint)


def test_updates_reach_the_weights(checkpoint: Path) -> None:
    learners.updates_reach_the_weights(CPU, checkpoint)
