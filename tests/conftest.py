"""What all the tests share: their environment, the `gpu` marker and fixtures of several packages."""

import fcntl
import gc
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is loaded; child processes inherit it
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs a hub fails here, not only on another machine

import cv2
import hypothesis
import numpy as np
import pytest
import torch

from posttrain.quickstart.tiny import build_tiny
from posttrain.types import VideoRef

#: Fixtures of the integration tests that take long to make.
SHARED = {"ray_cluster", "vllm_engine", "start_engine"}

# Machines here are shared: how long an example takes says nothing about the code.
hypothesis.settings.register_profile("posttrain", deadline=None, print_blob=True, max_examples=50)
hypothesis.settings.register_profile("soak", hypothesis.settings.get_profile("posttrain"), max_examples=1000)
hypothesis.settings.load_profile("posttrain")

SOAK_TIMEOUT_S = 3 * 3600

gc.disable()  # until the tests are collected: of what that loads, nothing becomes garbage


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--soak`."""
    parser.addoption(
        "--soak", action="store_true", help="the full numbers of trials, which take many minutes"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads its option
def pytest_configure(config: pytest.Config) -> None:
    """Have hypothesis try more examples with `--soak`, and a test take longer."""
    if config.getoption("--soak"):
        hypothesis.settings.load_profile("soak")
        if config.option.timeout is None:
            config.option.timeout = SOAK_TIMEOUT_S


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Have the collector of garbage pass over what a session keeps to its end: 1.6 million objects.

    Tests that make a trainer, which asks for it, took 40 % of their time to look through them all.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the interpreter free it all when it ends; bindings would report it as leaked."""
    gc.unfreeze()


@contextmanager
def locked(path: Path, operation: int) -> Iterator[None]:
    """Hold a lock of a file of the repository, which all of a machine's test processes know."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
        fcntl.flock(
            descriptor, fcntl.LOCK_UN
        )  # not left to closing: a child process may have it open as well
    finally:
        os.close(descriptor)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests of two processes (`-n 2`) run side by side, but for those marked `alone`.

    Whoever passes the first lock takes the second; who waits there to be alone keeps others from passing.
    """
    here = Path(__file__)
    alone = item.get_closest_marker("alone")
    with ExitStack() as held:
        with locked(here, fcntl.LOCK_EX):
            held.enter_context(locked(here.parent, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        return (yield)


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether tests with a number of trials run all of them."""
    return bool(request.config.getoption("--soak"))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests one process runs (`-n 2`), and skip those marked `gpu` where there is no CUDA device.

    A file's tests share fixtures, and some files the session's engine and Ray cluster.
    """
    # The longest file begins first; then the one whose Ray cluster is no other's, since a process has one.
    first = ("test_whole_loop", "test_placement")
    items.sort(key=lambda item: first.index(item.path.stem) if item.path.stem in first else len(first))
    sharing = {item.path for item in items if SHARED & set(getattr(item, "fixturenames", ()))}
    for item in items:
        file = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group("shared" if item.path in sharing else file))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly initialised tiny Qwen3-VL; shared, so never written to."""
    directory = tmp_path_factory.mktemp("tiny-qwen3-vl")
    build_tiny("qwen3_vl", directory, seed=0)
    return directory


@pytest.fixture(scope="session")
def make_video() -> Callable[..., VideoRef]:
    """Writes a video of the kind that its name tells, each frame lighter than the one before by 4."""
    codecs = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".webm": "VP80", ".avi": "MJPG"}

    def make(path: Path, frames: int = 30, size: tuple[int, int] = (96, 64), fps: float = 10.0) -> VideoRef:
        codec = cv2.VideoWriter.fourcc(*codecs[path.suffix])
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, fps, size)
        for number in range(frames):
            frame = np.full((size[1], size[0], 3), 4 * number % 256, dtype=np.uint8)
            frame[:, number * 5 % size[0] :][:, :3] = (30, 60, 220)  # a bar moves to the right
            writer.write(frame)
        writer.release()
        return VideoRef((str(path),))

    return make


@pytest.fixture(scope="session")
def clips(make_video: Callable[..., VideoRef], tmp_path_factory: pytest.TempPathFactory) -> list[VideoRef]:
    """A file, a part of one at a rate of its own, a folder of frames, and three frames one by one."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "walk").mkdir()
    for number in range(13):
        cv2.imwrite(str(folder / "walk" / f"{number}.png"), np.full((80, 50, 3), 15 * number, np.uint8))
    long = make_video(folder / "long.mkv", 61, size=(64, 64), fps=7.5)
    return [
        make_video(folder / "short.mp4", 40),
        VideoRef(long.paths, fps=1.25, start=2.0, end=7.1),
        VideoRef((str(folder / "walk"),), frame_rate=3.0),
        VideoRef(tuple(str(folder / "walk" / f"{number}.png") for number in (2, 10, 11))),
    ]
