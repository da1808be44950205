"""The quickstart's loop at its smallest, as a user runs it: every part real, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from posttrain.cli.main import main
from posttrain.config import dataset_names, load_dataset_config

pytestmark = pytest.mark.slow

SMALLEST = """
base: quickstart
name: smallest
stages:
  tiny_model: {max_steps: 8, global_batch_size: 16, num_workers: 1}
  sft: {max_steps: 8, per_device_batch_size: 8, save_steps: 4, logging_steps: 2, metric: null}
  cold_start:
    max_steps: 2
    num_workers: 1
    per_device_batch_size: 8
    eval_epochs: 0.1
    logging_steps: 1
    metric: null
  distillation:
    num_prompts: 16
    generation: {temperature: 1.0, samples_per_prompt: 8}  # a model that has learned so little rarely ends
    max_steps: 1
    num_workers: 1
    per_device_batch_size: 8
    logging_steps: 1
    metric: null
  dpo: {max_steps: 1, num_workers: 1, per_device_batch_size: 4, logging_steps: 1}
  rl:
    metric: null
    algorithm: {group_size: 4}
    prompts_per_step: 2
    max_steps: 4
    save_steps: 2
    warmup_ratio: 0.25
    num_workers: 1
    curation: not_solved.yaml
    dynamic_sampling: {max_rounds: 1}
reward_wait_s: 3
evaluation:
  stages: [cold_start, rl]
  tasks:
    with_tool: {num_samples: 16}
    without_tool: {num_samples: 16, stages: [rl]}
"""
#: What the model that RL starts from nearly always solves goes.
NOT_SOLVED = """
name: not-solved
data: markers_train
steps: [{filter: pass_rate, samples: 2, min: 0}]
"""
#: What SFT and RL need not wait for, where there is a tiny model already.
PASSED_OVER = ("tiny_model", "cold_start", "distillation", "dpo")
TIMEOUT = 600


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart with less of everything: steps, and scenes in its datasets."""
    path = tmp_path_factory.mktemp("whole-loop") / "smallest.yaml"
    path.write_text(SMALLEST, encoding="utf-8")
    (path.parent / "not_solved.yaml").write_text(NOT_SOLVED, encoding="utf-8")
    datasets = path.parent / "datasets_cfg"
    datasets.mkdir()
    for name in (name for name in dataset_names() if name.startswith("markers_")):
        dataset = load_dataset_config(name).model_dump(exclude_unset=True)
        dataset["source"]["params"]["count"] = 24
        (datasets / f"{name}.yaml").write_text(yaml.safe_dump(dataset), encoding="utf-8")
    return path


def start(recipe: Path, runs: Path, *arguments: str) -> subprocess.Popen[str]:
    """`posttrain run` in a process group of its own, so that a kill takes Ray's processes too."""
    return subprocess.Popen(
        [sys.executable, "-m", "posttrain.cli", "run", str(recipe), f"output_dir={runs}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=recipe.parent,
        start_new_session=True,
        env=os.environ | {"POSTTRAIN_CACHE": str(recipe.parent / "cache")},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=TIMEOUT)
    return output


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait for a condition, for as long as the run goes on."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, f"the run ended before:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """SIGKILL the whole process group as soon as a condition holds."""
    wait_until(process, condition)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing disturbed."""
    runs = tmp_path_factory.mktemp("undisturbed")
    process = start(recipe, runs)
    output = finish(process)
    assert process.returncode == 0, output
    assert "report:" in output
    assert "without_tool" in output
    return runs / "smallest"


def test_every_part_left_its_traces(undisturbed: Path):
    metrics = rows(undisturbed / "metrics.jsonl")
    stages = ("tiny_model", "sft", "cold_start", "distillation", "dpo", "rl")
    assert {row["stage"] for row in metrics} == set(stages)
    learned = [row for row in metrics if row["stage"] == "rl"]
    assert [row["step"] for row in learned] == [1, 2, 3, 4]
    for row in learned:
        assert row.get("logprob_gap/max", 0) < 1e-4  # a step in which no group differs has no passes
        assert row.get("publish/proof_gap", 0) < 1e-4  # after every publish, engine and learner agree
        assert row["update/skipped"] == 0
        assert row["reward/errors"] == 0
        assert 0 <= row["reward/answer_accuracy"] <= 1
    for stage in stages:
        final = json.loads((undisturbed / stage / "stage.json").read_text())["final"]
        assert (undisturbed / stage / final / "manifest.json").is_file()
    assert len(rows(undisturbed / "rollouts" / "rl" / "step-4.jsonl")) == 8
    assert [(row["stage"], row["step"], row["task"]) for row in rows(undisturbed / "evaluation.jsonl")] == [
        ("cold_start", 1, "with_tool"),
        ("cold_start", 2, "with_tool"),
        ("sft", 8, "markers_pairs_validation"),
        ("dpo", 1, "markers_pairs_validation"),
        ("rl", 4, "with_tool"),
        ("rl", 4, "without_tool"),
    ]
    funnel = json.loads((undisturbed / "cold_start" / "curation" / "funnel.json").read_text())
    assert 0 < funnel["kept"] < funnel["read"]
    assert learned[0]["refill/episodes"] == 4 * learned[0]["refill/groups"]
    page = (undisturbed / "report.html").read_text("utf-8")
    assert f"curated: {funnel['kept']} of {funnel['read']} rows kept" in page
    kept = rows(undisturbed / "rl" / "curation" / "kept.jsonl")
    assert {row["pass_rate"] for row in kept} <= {0.0, 0.5}
    assert f"curated: {len(kept)} of 24 rows kept" in page


def test_stages_start_from_what_they_name(undisturbed: Path):
    """A step moves a checkpoint a little: of two others, that which it came from is the nearer one by far."""

    def distance(one: str, other: str) -> float:
        ours, theirs = (load_file(undisturbed / path / "model.safetensors") for path in (one, other))
        return sum(float((ours[name] - theirs[name]).abs().sum()) for name in theirs)

    for stage, origin, other in (
        ("cold_start/checkpoint-2", "sft/checkpoint-8", "tiny_model/checkpoint-8"),
        ("distillation/checkpoint-1", "sft/checkpoint-8", "cold_start/checkpoint-2"),
        ("dpo/checkpoint-1", "sft/checkpoint-8", "distillation/checkpoint-1"),
        ("rl/checkpoint-4", "sft/checkpoint-8", "dpo/checkpoint-1"),
    ):
        assert distance(stage, origin) < distance(stage, other), stage


def test_a_used_directory_is_refused(
    recipe: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(recipe.parent)
    assert main(["run", str(recipe), f"output_dir={undisturbed.parent}"]) == 2
    assert "--resume" in "".join(capsys.readouterr())


def test_eval_measures_a_checkpoint_as_the_run_did(recipe: Path, undisturbed: Path, tmp_path: Path):
    command = [sys.executable, "-m", "posttrain.cli", "eval", str(undisturbed / "rl" / "checkpoint-4")]
    command += ["--data", "markers_test", "--tools", "image_zoom_in", "--max-turns", "3"]
    command += ["--num-samples", "16", "--max-new-tokens", "64", "--max-length", "256"]
    finished = subprocess.run(
        [*command, "--output-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=recipe.parent,
        env=os.environ | {"POSTTRAIN_CACHE": str(recipe.parent / "cache")},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    [directory] = tmp_path.iterdir()
    [measured] = rows(directory / "evaluation.jsonl")
    *_, before = [row for row in rows(undisturbed / "evaluation.jsonl") if row["task"] == "with_tool"]
    assert (measured["stage"], measured["step"]) == ("rl", 4)
    assert "tool_calls" in finished.stdout  # the means of all rewards, of calls and tokens
    assert measured["accuracy"] == before["accuracy"]
    assert measured["metrics"]["tokens"] == before["metrics"]["tokens"]


def test_a_run_disturbed_in_two_stages_ends_as_the_undisturbed_one(
    recipe: Path, undisturbed: Path, tmp_path: Path
):
    """Killed while SFT trains; then its rewards are gone, and nothing stands in for them."""
    run = tmp_path / "smallest"
    changes = [f"model.name_or_path={undisturbed / 'tiny_model' / 'checkpoint-8'}", "evaluation.stages=[rl]"]
    changes += [f"stages.{stage}=null" for stage in PASSED_OVER]
    kill_when(start(recipe, tmp_path, *changes), (run / "sft/checkpoint-4/manifest.json").is_file)
    changes += ["--resume"]
    process = start(recipe, tmp_path, *changes)
    wait_until(process, (run / "rl/checkpoint-2/manifest.json").is_file)
    servers = reward_servers(process.pid)
    assert servers
    for pid in servers:
        os.kill(pid, signal.SIGKILL)
    output = finish(process)
    assert process.returncode == 2, output
    assert "the reward server" in output
    assert "--resume" in output
    resumed = start(recipe, tmp_path, *changes)
    output = finish(resumed)
    assert resumed.returncode == 0, output
    for checkpoint in ("sft/checkpoint-8", "rl/checkpoint-4"):
        ours = load_file(run / checkpoint / "model.safetensors")
        theirs = load_file(undisturbed / checkpoint / "model.safetensors")
        assert all((ours[name] == theirs[name]).all() for name in theirs), checkpoint
    steps = [row["step"] for row in rows(run / "metrics.jsonl") if row["stage"] == "rl"]
    assert steps == [1, 2, 3, 4]
    measured = [row["accuracy"] for row in rows(run / "evaluation.jsonl")]
    expected = [row["accuracy"] for row in rows(undisturbed / "evaluation.jsonl") if row["stage"] == "rl"]
    assert measured == expected


def test_a_terminated_rl_stage_saves_what_is_learned_and_goes_on_from_there(
    recipe: Path, undisturbed: Path, tmp_path: Path, soak: bool
):
    if not soak:
        pytest.skip("takes a minute; unit tests show the same without processes")
    settings = yaml.safe_load((undisturbed / "resolved.json").read_text())
    settings["model"]["name_or_path"] = str(undisturbed / "sft" / "checkpoint-8")
    stage = settings["stages"][-1] | {"max_steps": 30, "save_steps": 30, "start_from": None}
    settings["stages"] = [stage | {"rollout": stage["rollout"] | {"max_staleness": 2}}]
    settings["evaluation"] = None
    from_sft = recipe.parent / "terminated.yaml"
    from_sft.write_text(yaml.safe_dump(settings), encoding="utf-8")
    process = start(from_sft, tmp_path)
    wait_until(process, (tmp_path / "smallest" / "rollouts" / "rl" / "step-2.jsonl").is_file)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert process.returncode == 143, output
    assert "what was learned is saved" in output
    [checkpoint] = (tmp_path / "smallest" / "rl").glob("checkpoint-*")
    learned = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 1 <= learned < 30
    assert not psutil.wait_procs(children, timeout=30)[1]
    output = finish(start(from_sft, tmp_path, "--resume"))
    assert "report:" in output, output
    steps = rows(tmp_path / "smallest" / "metrics.jsonl")
    assert [row["step"] for row in steps] == list(range(1, 31))
    assert max(row["staleness/max"] for row in steps) <= 2


def reward_servers(run: int) -> list[int]:
    """Processes below a run's that run `rewards serve`."""
    children = psutil.Process(run).children(recursive=True)
    return [child.pid for child in children if {"rewards", "serve"} <= set(child.cmdline())]


def test_a_comparison_is_run_killed_and_resumed_cell_by_cell(
    recipe: Path, undisturbed: Path, tmp_path: Path, soak: bool
):
    if not soak:
        pytest.skip("takes two minutes; unit tests show what becomes of `vary`, and of what cells record")
    changes = [f"model.name_or_path={undisturbed / 'sft' / 'checkpoint-8'}", "stages.rl.start_from=base"]
    changes += [f"stages.{stage}=null" for stage in (*PASSED_OVER, "sft")]
    changes += ["evaluation={stages: [base, rl]}", "evaluation.tasks.without_tool=null"]
    changes += ["stages.rl.vary={seed: [0, 1], algorithm: {name: [sapo, grpo]}}", "stages.rl.max_steps=2"]
    run = tmp_path / "smallest"
    names = [f"rl-seed{seed}-{name}" for seed in (0, 1) for name in ("sapo", "grpo")]
    kill_when(start(recipe, tmp_path, *changes), (run / names[1] / "checkpoint-2" / "manifest.json").is_file)
    output = finish(resumed := start(recipe, tmp_path, *changes, "--resume"))
    assert resumed.returncode == 0, output
    assert f"── {names[0]}" not in output  # what was finished is not done again
    metrics = rows(run / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in metrics] == [
        (name, step) for name in names for step in (1, 2)
    ]

    def played(name: str, step: int) -> list[tuple[str, list[dict]]]:
        episodes = rows(run / "rollouts" / name / f"step-{step}.jsonl")
        return [(row["sample_id"], row["messages"]) for row in episodes]

    # From one checkpoint, with the same prompts and random numbers, objectives differ after the first update.
    assert played(names[0], 1) == played(names[1], 1)
    assert played(names[0], 1) != played(names[2], 1)
    assert [sample for sample, _ in played(names[0], 2)] == [sample for sample, _ in played(names[1], 2)]
    assert {row["stage"] for row in rows(run / "evaluation.jsonl")} == {"base", *names}
    assert "2 settings of 2 steps, 2 seeds, 16 held-out prompts" in (run / "comparison-rl.md").read_text(
        "utf-8"
    )
