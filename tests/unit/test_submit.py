"""What `posttrain submit` lays into a job's folder, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from posttrain.cli.submit import LIMIT, SubmitError, prepare, stage
from posttrain.config import build_run, read_run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe on top of a shipped one, among files of all kinds."""
    folder = tmp_path / "mine"
    (folder / "datasets_cfg").mkdir(parents=True)
    (folder / "my.yaml").write_text("base: quickstart\nname: mine\n", encoding="utf-8")
    for name in ("tool.py", "datasets_cfg/own.yaml", ".secret", "weights.safetensors", "picture.png"):
        (folder / name).write_text("x")
    for inside in ("runs/old/resolved.json", "model/config.json", "__pycache__/tool.pyc"):
        (folder / inside).parent.mkdir(parents=True)
        (folder / inside).write_text("{}")
    return folder / "my.yaml"


def test_a_job_carries_the_recipe_its_files_and_the_code(recipe: Path, tmp_path: Path):
    folder = tmp_path / "job"
    folder.mkdir()
    document = read_run(recipe, ["seed=7", "output_dir=/shared/runs"])
    stage(document, folder, str(recipe))
    carried = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    own = {
        path for path in carried if "/" not in path or path.startswith(("datasets_cfg/own", "runs", "model/"))
    }
    assert own == {"run.yaml", "my.yaml", "tool.py", "datasets_cfg/own.yaml"}
    written = yaml.safe_load((folder / "run.yaml").read_text())
    assert (written["name"], written["seed"], written["cluster"]["address"]) == ("mine", 7, "auto")
    # On a machine without posttrain the job's folder is all that there is of it, its plugins included.
    code = "from posttrain.plugins import declared; print(*declared('posttrain.tools'))"
    code = f"import sys; sys.path = [p for p in sys.path if p != {str(Path(__file__).parents[2])!r}]; {code}"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, env={"PATH": ""}
    )
    assert "image_zoom_in" in found.stdout
    there = read_run(folder / "run.yaml")
    assert build_run(there).base_dir == str(folder)
    assert build_run(there).stages == build_run(document).stages


def test_a_folder_with_data_is_refused(recipe: Path, tmp_path: Path):
    with (recipe.parent / "rows.jsonl").open("wb") as file:
        file.truncate(LIMIT + 1)
    with pytest.raises(SubmitError, match=r"the largest is .*rows.jsonl"):
        stage(read_run(recipe), tmp_path, str(recipe))


def test_results_are_not_lost_with_the_job(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SubmitError, match="output_dir=/"):
        prepare(build_run(read_run(recipe)), [])
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("OTHER", "stays")
    config = build_run(read_run(recipe, ["output_dir=/shared", "cluster.environment=[DATA]"]))
    submission = prepare(config, ["--resume"])
    assert submission.command == "python -u -m posttrain.cli run run.yaml --resume"
    assert submission.environment.items() >= {"HF_TOKEN": "hf_x", "DATA": "/data"}.items()
    assert "OTHER" not in submission.environment
