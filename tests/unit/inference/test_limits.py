"""How long engines may take: by their device, by the size of the weights, and for a download."""

from pathlib import Path

import pytest

from posttrain.files.reading import seconds_to_read
from posttrain.inference import worker
from posttrain.inference.pool import Timeouts
from posttrain.inference.worker import InferenceWorker


def test_a_step_on_a_gpu_may_take_as_long_as_a_kernel_compiles():
    on_cpu, on_gpu = Timeouts.usual(use_gpu=False), Timeouts.usual(use_gpu=True)
    assert on_cpu.step == 30
    assert on_gpu.step >= 120
    assert (on_cpu.start, on_cpu.answer) == (on_gpu.start, on_gpu.answer)


def test_more_weights_may_take_longer_to_read(tmp_path: Path):
    assert seconds_to_read(Path("some/model-of-the-hub")) == 0
    for part in range(2):
        with (tmp_path / f"model-{part}.safetensors").open("wb") as file:
            file.truncate(9_000_000_000)  # an 8B model in bfloat16
    assert 300 < seconds_to_read(tmp_path) < 600


def test_only_a_model_of_the_hub_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr(worker, "snapshot_download", lambda name, **_: asked.append(name))
    InferenceWorker().fetch(tmp_path)
    InferenceWorker().fetch(Path("some/model"))
    assert asked == ["some/model"]
