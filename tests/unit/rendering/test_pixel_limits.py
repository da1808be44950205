"""Memory and threads for pixels follow from the host's, its control group's, and the ranks on it."""

from pathlib import Path

import pytest
import torch

from posttrain.doctor import machine
from posttrain.rendering import pixel_limits
from posttrain.rendering.pixel_limits import MOST_THREADS, RANKS_HERE
from posttrain.rendering.pixel_limits import pixel_limits as limits_here

GIB = 2**30


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A host of 64 GiB and 16 cores, without a process group or limits."""
    memory = type("Memory", (), {"total": 64 * GIB})
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: range(16))
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "OWN_CONTROL_GROUPS", tmp_path / "own")
    for name in ("LOCAL_WORLD_SIZE", RANKS_HERE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return tmp_path


def test_memory_is_shared_by_the_ranks_of_the_host(host, monkeypatch):
    whole = limits_here().max_bytes
    assert whole == 64 * GIB * pixel_limits.SHARE_OF_PIXELS
    for name in ("LOCAL_WORLD_SIZE", RANKS_HERE):
        monkeypatch.setenv(name, "8")
        assert limits_here().max_bytes == whole // 8
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/\n", "memory.max"),
        ("0::/system.slice/job_7/step_0\n", "system.slice/job_7/memory.max"),
        ("5:devices:/\n4:memory:/job_7\n", "memory/job_7/memory.limit_in_bytes"),
    ],
)
def test_a_control_groups_limit_counts(host, own, file):
    (host / "own").write_text(own)
    limit = host / "groups" / file
    limit.parent.mkdir(parents=True)
    limit.write_text(f"{8 * GIB}\n")
    assert limits_here().max_bytes == 8 * GIB * pixel_limits.SHARE_OF_PIXELS
    limit.write_text("max\n")
    assert limits_here().max_bytes == 64 * GIB * pixel_limits.SHARE_OF_PIXELS


def test_only_cores_that_the_model_leaves_prepare_pixels(host, monkeypatch):
    assert limits_here().threads == MOST_THREADS
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert limits_here().threads == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert limits_here().threads == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert limits_here().threads == 3  # the model is on the GPU
