"""What all the tests share: their environment, the `gpu` marker and fixtures of several packages."""

import os
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is loaded; child processes inherit it
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs a hub fails here, not only on another machine

import hypothesis
import pytest
import torch

from posttrain.models.tiny import build_tiny

INTEGRATION = Path(__file__).parent / "integration"

# Machines here are shared: how long an example takes says nothing about the code.
hypothesis.settings.register_profile("posttrain", deadline=None, print_blob=True, max_examples=50)
hypothesis.settings.register_profile("soak", hypothesis.settings.get_profile("posttrain"), max_examples=1000)
hypothesis.settings.load_profile("posttrain")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--soak`."""
    parser.addoption(
        "--soak", action="store_true", help="the full numbers of trials, which take many minutes"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Have hypothesis try more examples with `--soak`."""
    if config.getoption("--soak"):
        hypothesis.settings.load_profile("soak")


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether tests with a number of trials run all of them."""
    return bool(request.config.getoption("--soak"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests one process runs (`-n 2`), and skip those marked `gpu` where there is no CUDA device.

    A file's tests share fixtures, and all the integration tests one engine and one Ray cluster.
    """
    for item in items:
        together = INTEGRATION if item.path.is_relative_to(INTEGRATION) else item.path
        item.add_marker(pytest.mark.xdist_group(together.stem))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly initialised tiny Qwen3-VL; shared, so never written to."""
    directory = tmp_path_factory.mktemp("tiny-qwen3-vl")
    build_tiny("qwen3_vl", directory, seed=0)
    return directory
