"""Run directories: who may begin, who may go on, and what is recorded."""

import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config import RunConfig
from posttrain.run.directory import (
    ChangedRun,
    RunDir,
    UsedRunDirectory,
)


def config_of(folder: Path, **changes: Any) -> RunConfig:
    stage = {"stage": "tiny_model", "max_steps": 10, "global_batch_size": 4, "learning_rate": 0.01}
    settings = {"name": "demo", "output_dir": str(folder), "seed": 0, "model": {}, "stages": [stage]}
    return RunConfig.model_validate(settings | changes)


def test_a_new_run_records_what_it_is(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    run = RunDir.create(config, resume=False)
    assert run.path == tmp_path / "demo"
    assert json.loads((run.path / "resolved.json").read_text()) == config.model_dump(mode="json")
    assert RunConfig.model_validate(yaml.safe_load((run.path / "config.yaml").read_text())) == config
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["packages"]["pydantic"]
    assert environment["python"] == sys.version.split()[0]
    assert not list(run.path.glob(".*"))


def test_a_relative_output_dir_is_made_absolute_for_workers_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDir.create(config_of(Path("runs")), resume=False)
    assert pickle.loads(pickle.dumps(run)).path == tmp_path / "runs" / "demo"


def test_a_used_directory_is_refused_without_resume(tmp_path: Path) -> None:
    RunDir.create(config_of(tmp_path), resume=False)
    with pytest.raises(UsedRunDirectory, match="demo holds a run already: go on with it by --resume"):
        RunDir.create(config_of(tmp_path), resume=False)
    RunDir.create(config_of(tmp_path), resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_directory_of_something_else_is_refused(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").touch()
    with pytest.raises(UsedRunDirectory, match="not empty and holds no run"):
        RunDir.create(config_of(tmp_path), resume=resume)


def test_resume_of_nothing_begins_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDir.create(config_of(tmp_path), resume=True)
    assert (run.path / "resolved.json").is_file()
    assert "holds no run to resume" in caplog.text


def test_a_changed_config_is_refused_and_the_keys_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    RunDir.create(config_of(tmp_path), resume=False)
    stage = {"stage": "tiny_model", "max_steps": 20, "global_batch_size": 4, "learning_rate": 0.01}
    changed = config_of(tmp_path, seed=1, stages=[stage])
    with pytest.raises(ChangedRun, match=r"seed: 0 → 1; stages\[0\]\.max_steps: 10 → 20\)"):
        RunDir.create(changed, resume=True)
    run = RunDir.create(changed, resume=True, allow_changes=True)
    assert "changed config" in caplog.text
    assert json.loads((run.path / "resolved.json").read_text())["seed"] == 1


def test_a_spent_budget_may_be_raised(tmp_path: Path) -> None:
    RunDir.create(config_of(tmp_path, judge_budget={"max_calls": 10}), resume=False)
    for budget in ({"max_calls": 20}, {"max_calls": 20, "on_exhausted": "skip"}, None):
        RunDir.create(config_of(tmp_path, judge_budget=budget), resume=True)
    with pytest.raises(ChangedRun, match=r"\(seed: 0 → 1\)"):
        RunDir.create(config_of(tmp_path, judge_budget={"max_calls": 30}, seed=1), resume=True)


def test_a_moved_run_is_the_same_run(tmp_path: Path) -> None:
    RunDir.create(config_of(tmp_path / "here"), resume=False)
    (tmp_path / "here").rename(tmp_path / "there")
    RunDir.create(config_of(tmp_path / "there"), resume=True)


def test_changed_data_are_refused_and_named(tmp_path: Path) -> None:
    run = RunDir.create(config_of(tmp_path), resume=False)
    run.check_data({"scenes": "aa", "charts": "bb"}, {"scenes": "MIT", "charts": "CC-BY-4.0"})
    run.check_data({"scenes": "aa", "maths": "cc"}, {"scenes": "MIT", "maths": "CC0-1.0"})
    assert run.licences() == {"scenes": "MIT", "charts": "CC-BY-4.0", "maths": "CC0-1.0"}
    with pytest.raises(ChangedRun, match="the data of charts changed"):
        run.check_data({"scenes": "aa", "charts": "xx"}, {})
    RunDir.create(config_of(tmp_path), resume=True, allow_changes=True).check_data({"charts": "xx"}, {})


def test_other_packages_on_resume_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDir.create(config_of(tmp_path), resume=False)
    record = json.loads((run.path / "environment.json").read_text())
    record["packages"]["pydantic"] = "0.1"
    (run.path / "environment.json").write_text(json.dumps(record))
    RunDir.create(config_of(tmp_path), resume=True)
    assert "pydantic 0.1 →" in caplog.text


def test_loads_no_torch() -> None:
    code = "import sys, posttrain.run.directory, posttrain.run.tracking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(autouse=True)
def _warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="posttrain")
