"""What a whole supervised stage draws: shares of tokens, the curriculum by length, both after a resume."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import RunConfig
from posttrain.quickstart import marker_scenes
from posttrain.run.directory import RunDir
from posttrain.training.supervised.batches import RenderedDraws
from posttrain.training.supervised.sft import sft_worker
from tests.stage_jobs import job_of

STEPS, SIZE = 6, 4
#: Dialogues of `zoom` have 77 to 83 tokens, those of `list` 48 to 60.
SHORT, MOST = 79, 400


class RecordedDraws(RenderedDraws):
    """Notes dataset and tokens of each draw when it is first asked for."""

    drawn: dict[int, tuple[str, tuple[int, ...]]]

    def sample(self, draw: int) -> tuple[Any, int]:
        rendered, left_out = super().sample(draw)
        self.drawn[draw] = (self._mixture.index(draw)[0], tuple(rendered.token_ids))
        return rendered, left_out


class Stage:
    """A stage with the datasets `zoom` and `list`; training on it gives its draws and its losses."""

    def __init__(self, checkpoint: Path, folder: Path, **data: Any) -> None:
        for kind in ("zoom", "list"):
            (folder / kind).mkdir(parents=True)
            marker_scenes.write(folder / kind, kind=kind, split="sft", count=6, sloppiness=0.5)
            source = {"path": f"{kind}/data.jsonl"}
            dataset = {"name": kind, "description": "Scenes.", "licence": "CC0-1.0", "source": source}
            (folder / f"{kind}.yaml").write_text(json.dumps(dataset))
        loop = {"max_steps": STEPS, "save_steps": 3, "per_device_batch_size": SIZE, "logging_steps": 1}
        data = {"mixture": {"zoom.yaml": 0.5, "list.yaml": 0.5}, "max_length": MOST} | data
        config = RunConfig.model_validate(
            {
                "name": "stage",
                "output_dir": str(folder / "runs"),
                "base_dir": str(folder),
                "model": {"name_or_path": str(checkpoint), "dtype": "float32"},
                "stages": [{"stage": "sft", "data": data, "learning_rate": 1e-3} | loop],
                "trackers": [],
            }
        )
        self.run = RunDir.create(config, resume=False)
        self.config, self.start = config, checkpoint

    def train(self) -> tuple[dict[int, tuple[str, tuple[int, ...]]], dict[int, float]]:
        drawn: dict[int, tuple[str, tuple[int, ...]]] = {}
        draws = type("Draws", (RecordedDraws,), {"drawn": drawn})
        sft_worker(job_of(self.config, self.run, self.start), make_draws=draws)
        rows = map(json.loads, (self.run.path / "metrics.jsonl").read_text().splitlines())
        return drawn, {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_shares_of_tokens_and_phases_of_length_hold_and_resume(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    data = {
        "mixture_by": "tokens",
        "curriculum": {"short_length": SHORT, "short_phase": 0.5, "long_share": 0.25},
    }
    packed = Stage(tiny_checkpoint, tmp_path / "packed", packing=True, **data)
    drawn, losses = packed.train()
    assert sorted(drawn) == list(range(STEPS * SIZE))
    long = [draw for draw, (_, tokens) in sorted(drawn.items()) if len(tokens) > SHORT]
    begun = STEPS * SIZE // 2
    # A quarter of each step of the second phase.
    assert [(draw - begun) // SIZE for draw in long] == [0, 1, 2]
    short: Counter[str] = Counter()
    for draw, (name, tokens) in sorted(drawn.items()):
        if draw not in long:
            short[name] += len(tokens)
            assert all(count - short.total() / 2 < SHORT for count in short.values())
    assert len(short) == 2
    # Resumed in the middle of an epoch: the same draws, the same losses.
    shutil.rmtree(packed.run.newest_checkpoint("sft") or "")
    again, losses_again = packed.train()
    assert again == {draw: found for draw, found in drawn.items() if draw >= 3 * SIZE}
    assert losses_again == losses
    # Without packing the same samples, and so the same losses.
    plain = Stage(tiny_checkpoint, tmp_path / "plain", **data)
    unpacked, losses_unpacked = plain.train()
    assert unpacked == drawn
    assert losses_unpacked == pytest.approx(losses, rel=1e-3)
