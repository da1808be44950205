"""The command line as a newcomer meets it; nothing here starts a run."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.cli import main as cli
from posttrain.cli.checkpoint import evaluation_run
from posttrain.cli.main import build_parser, main
from posttrain.config import Document, RunConfig, build_run, recipe_names
from posttrain.run.directory import RunDir

COMMANDS = ("run", "validate", "doctor", "eval", "view", "rewards serve", "rewards list")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTTRAIN_DATA", raising=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [line.partition("   ")[0] for line in lines if line.startswith(f"posttrain {command}")]
    assert examples
    for example in examples:
        options = build_parser().parse_args(shlex.split(example)[1:])
        assert options.command == command.split()[-1]


def test_without_a_command_the_first_steps_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "posttrain run quickstart" in capsys.readouterr().out
    assert main(["rewards"]) == 0


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_is_valid_without_weights_or_data(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", recipe]) == 0
    assert f"{recipe}: valid" in capsys.readouterr().out


def test_a_dry_run_prints_the_arithmetic_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "quickstart", "--dry-run", "stages.rl.prompts_per_step=32", "seed=1"]) == 0
    output = capsys.readouterr().out
    assert "32 prompts × 8 = 256" in output
    assert "nothing was started" in output
    assert list(Path().iterdir()) == []


def test_a_run_without_its_data_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "qwen3-vl-8b"]) == 2
    error = capsys.readouterr().err
    assert "stages[0].data.mixture.chat_vl" in error
    assert "set the environment variable POSTTRAIN_DATA" in error
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "quikstart"], "did you mean quickstart?"),
        (["validate", "mine.yaml"], "there is no such file"),
        (["validate", "quickstart", "stages.rl.group_sise=3"], "did you mean algorithm.group_size?"),
        (["validate", "quickstart", "stages.rl.tasks.markers_train.tools=[image_zoom]"], "image_zoom_in"),
        (["validate", "quickstart", "stages.rl.tasks.markers_train.data=marker_train"], "markers_train"),
    ],
)
def test_our_errors_are_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "quikstart", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_shown_as_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "read_run", lambda *_: 1 / 0)
    assert main(["validate", "quickstart"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["run", "quickstart", "--resum"], ["view", "a", "b=1"], ["ran"]])
def test_unknown_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_an_evaluation_is_a_run_without_stages(tiny_checkpoint: Path) -> None:
    options = build_parser().parse_args(
        [
            "eval",
            str(tiny_checkpoint),
            "--data",
            "markers_test",
            "--tools",
            "image_zoom_in",
            "--num-samples",
            "9",
        ]
    )
    config: RunConfig = build_run(Document(evaluation_run(options), "command line"))
    assert config.stages == []
    assert config.model.dtype == "float32"
    assert [task.name for task in config.tasks_after("base")] == ["markers_test"]
    assert config.evaluation is not None
    assert (config.evaluation.tasks[0].num_samples, config.evaluation.tasks[0].max_turns) == (9, 4)
    assert config.evaluation_rollout.max_length == 4096


def test_a_run_directory_that_is_taken_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    config = build_run(cli.read_run("quickstart"))
    RunDir.create(config, resume=False)
    assert main(["run", "quickstart"]) == 2
    assert "--resume" in capsys.readouterr().err


def test_rewards_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "list"]) == 0
    assert "answer_accuracy          [0, 1]" in capsys.readouterr().out


def test_validating_loads_nothing_heavy_and_answers_soon() -> None:
    code = (
        "import sys; from posttrain.cli.main import main; code = main(['validate', 'qwen3-vl-8b']);"
        "sys.exit(code or bool({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    begun = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert time.perf_counter() - begun < 10  # under a second on an idle machine


def test_it_runs_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "posttrain.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("posttrain ")


@pytest.mark.parametrize("command", ["eval", "export", "chat"])
@pytest.mark.parametrize("level", ["run", "run/sft"])
def test_a_run_is_not_taken_for_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, level: str
) -> None:
    for step in (2, 10):
        (tmp_path / f"run/sft/checkpoint-{step}").mkdir(parents=True)
        os.utime(tmp_path / f"run/sft/checkpoint-{step}", (step, step))
    rest = {"eval": ["--data", "markers_test"], "export": ["--output", str(tmp_path / "out")], "chat": []}
    assert main([command, str(tmp_path / level), *rest[command]]) == 2
    assert capsys.readouterr().err.endswith(f"the newest is {tmp_path}/run/sft/checkpoint-10\n")
