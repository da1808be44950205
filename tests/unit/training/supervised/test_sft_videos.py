"""Supervised fine-tuning on rows with videos: whole stages of two steps, padded and packed."""

import json
import math
import shutil
from pathlib import Path

import pytest

from posttrain.config import RunConfig
from posttrain.quickstart.tiny import build_tiny
from posttrain.run.directory import RunDir
from posttrain.training.supervised.sft import sft_worker
from posttrain.types import Family, VideoRef
from tests.stage_jobs import job_of


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_packed_and_padded_stages_learn_the_same(
    family: Family, tmp_path: Path, clips: list[VideoRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    build_tiny(family, tmp_path / "model")
    shutil.copy(clips[0].paths[0], tmp_path / "fall.mp4")
    shutil.copytree(clips[2].paths[0], tmp_path / "walk")
    rows = [
        {
            "id": f"{path}-{number}",
            "messages": [
                {"role": "user", "content": "What happens? <video>" if path else "What is a film?"},
                {"role": "assistant", "content": "A cup falls." * (number + 1)},
            ],
            "videos": [{"video": path, "fps": 1 + number}] if path else [],
        }
        for path in ("fall.mp4", "walk", "")
        for number in range(2)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {
        "name": "films",
        "description": "Films.",
        "licence": "CC0-1.0",
        "source": {"path": "rows.jsonl"},
    }
    (tmp_path / "films.yaml").write_text(json.dumps(dataset))
    losses = []
    for packing in (False, True):
        data = {"mixture": {"films.yaml": 1.0}, "packing": packing, "max_length": 400}
        loop = {"max_steps": 2, "per_device_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3}
        config = RunConfig.model_validate(
            {
                "name": f"packing-{packing}",
                "output_dir": str(tmp_path / "runs"),
                "base_dir": str(tmp_path),
                "model": {"name_or_path": str(tmp_path / "model"), "dtype": "float32"},
                "stages": [{"stage": "sft", "data": data} | loop],
                "trackers": [],
            }
        )
        run = RunDir.create(config, resume=False)
        sft_worker(job_of(config, run, tmp_path / "model"))
        metrics = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in metrics if "loss" in row])
    padded, packed = losses
    assert len(padded) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in padded)
    assert packed == pytest.approx(padded, rel=1e-4)
