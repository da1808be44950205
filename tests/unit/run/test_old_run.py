"""A run that an older version made: it can be viewed, exported and evaluated, and is not gone on with.

`old_run` is a quickstart run cut short: settings under their old names, every file as it was written then, a
few rows of each, and no weights.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.cli import main as cli
from posttrain.config import RunConfig
from posttrain.data.preferences import preference_pairs
from posttrain.evaluation.evaluate import final_evaluations, read_evaluations
from posttrain.run.directory import ForeignRun, RunDir
from posttrain.run.resuming import LAYOUT
from posttrain.training import pipeline


@pytest.fixture
def old_run(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """The run, with a checkpoint of its last stage."""
    run = tmp_path / "runs" / "quickstart"
    shutil.copytree(Path(__file__).parent / "old_run", run)
    RunDir(run).save_checkpoint(
        "rl", 40, lambda path: shutil.copytree(tiny_checkpoint, path, dirs_exist_ok=True)
    )
    return run


def tiny_run(folder: Path, name: str = "quickstart") -> RunConfig:
    stage = {"stage": "tiny_model", "max_steps": 10}
    return RunConfig.model_validate({"name": name, "output_dir": str(folder), "stages": [stage]})


def set_layout(run: Path, change: Callable[[dict[str, object]], object]) -> None:
    environment = json.loads((run / "environment.json").read_text())
    change(environment)
    (run / "environment.json").write_text(json.dumps(environment))


def test_it_can_be_viewed(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["view", str(old_run)]) == 0
    assert capsys.readouterr().out.strip() == str(old_run / "report.html")
    page = (old_run / "report.html").read_text()
    assert "With tool: 44 % after SFT → 68 % after RL" in page
    assert "curated: 1,258 of 1,590 rows kept" in page
    assert page.count("<article") == 7
    assert page.count("500 / 500 steps") == 2
    assert "limit 1e-4" in page
    assert page.count('class="edge') > 0
    assert "could not be read" not in page


def test_a_checkpoint_can_be_exported(old_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli.main(["export", str(old_run / "rl" / "checkpoint-40"), "--output", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "by `tiny_model` (tiny_model), then `sft` (sft), then `rl` (rl)." in card
    assert "| rl | markers_train | 100% | not recorded |" in card
    assert "| rl | with_tool | 0.680 [0.633, 0.724] | 400 |" in card
    assert (out / "model.safetensors").is_file()


def test_a_checkpoint_can_be_evaluated(
    old_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[RunConfig] = []
    monkeypatch.setattr(pipeline, "run", started.append)
    message = {"role": "user", "content": "Which?"}
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": [message], "ground_truth": "K"}) + "\n")
    (tmp_path / "asked.yaml").write_text(
        "name: asked\ndescription: One question.\nlicence: none\nsource: {path: data.jsonl}\n"
    )
    checkpoint = old_run / "rl" / "checkpoint-40"
    assert cli.main(["eval", str(checkpoint), "--data", str(tmp_path / "asked.yaml")]) == 0
    assert started[0].model.name_or_path == str(checkpoint)


def test_its_rollouts_still_make_pairs(old_run: Path) -> None:
    pairs = list(preference_pairs(old_run, "rl"))
    assert [pair.id for pair in pairs] == ["rl-1-1", "rl-40-0"]
    assert pairs[0].tools == ("image_zoom_in",)


def test_its_evaluations_are_read(old_run: Path) -> None:
    rows = read_evaluations(RunDir(old_run))
    assert len(final_evaluations(rows)) == 11
    assert len(rows) == 12


@pytest.mark.parametrize("allow_changes", [False, True])
def test_it_is_not_gone_on_with(old_run: Path, allow_changes: bool) -> None:
    with pytest.raises(ForeignRun, match=r"an older version of posttrain began it.*\(layout 1, here 3\)\."):
        RunDir.create(tiny_run(old_run.parent), resume=True, allow_changes=allow_changes)
    assert (old_run / "data.json").is_file()


def test_the_layout_is_recorded_and_compared(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    run = RunDir.create(config, resume=False)
    assert json.loads((run.path / "environment.json").read_text())["layout"] == LAYOUT
    RunDir.create(config, resume=True)
    set_layout(run.path, lambda environment: environment.update(layout=LAYOUT + 1))
    with pytest.raises(ForeignRun, match="a newer version of posttrain began it"):
        RunDir.create(config, resume=True)
    set_layout(run.path, lambda environment: environment.pop("layout"))
    with pytest.raises(ForeignRun, match="Begin anew under another `name`, or resume it with that version"):
        RunDir.create(config, resume=True)


def test_a_run_that_ended_before_it_recorded_its_environment_goes_on(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    (RunDir.create(config, resume=False).path / "environment.json").unlink()
    RunDir.create(config, resume=True)
