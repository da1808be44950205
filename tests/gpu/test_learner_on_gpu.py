"""The learner on a GPU, by the checks that a CPU passes too (`tests/learners.py`); and a GPU's kernels."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from posttrain.config.model import AttnImplementation, FusedLayers
from tests import learners

pytestmark = pytest.mark.gpu


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model, in a folder that images are written to."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def test_one_rank_has_its_collectives() -> None:
    learners.check_on("cuda", learners.one_rank_has_its_collectives)


def test_shardings_agree(checkpoint: Path) -> None:
    learners.check_on("cuda", learners.shardings_agree, checkpoint)


def test_checkpointing_saves_memory_and_nothing_else(checkpoint: Path) -> None:
    learners.check_on("cuda", learners.checkpointing_saves_memory_and_nothing_else, checkpoint)


def test_updates_reach_the_weights(checkpoint: Path) -> None:
    learners.check_on("cuda", learners.updates_reach_the_weights, checkpoint)


@pytest.mark.parametrize(
    ("attn_implementation", "fused_layers", "package"),
    [
        ("flash_attention_2", "none", "flash_attn"),
        ("flash_attention_3", "none", "flash_attn_interface"),
        ("sdpa", "liger", "liger_kernel"),
    ],
)
def test_kernels_agree_with_pytorchs_own(
    checkpoint: Path, attn_implementation: AttnImplementation, fused_layers: FusedLayers, package: str
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    learners.check_on("cuda", learners.kernels_agree, checkpoint, attn_implementation, fused_layers)
