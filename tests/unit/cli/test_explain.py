"""`posttrain explain`: pages that fit a terminal, quickly."""

import subprocess
import sys

import pytest

from posttrain.cli.main import main


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["explain", *words]) == 0
    return capsys.readouterr().out


def test_the_overview_names_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    page = explained(capsys)
    for beginning in ("model: ", "    stage: sft – ", "    stage: rl – ", "    posttrain explain dataset "):
        assert f"\n{beginning}" in page
    assert "freeze_vision_tower" in page


@pytest.mark.parametrize("width", ["20", "100", "400"])
@pytest.mark.parametrize("key", [(), ("stages",), ("stages.rl",), ("curation", "--all"), ("--all",)])
def test_lines_fit_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: str, key: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    lines = explained(capsys, *key).splitlines()
    assert max(map(len, lines)) <= 110
    assert all(line == line.rstrip() for line in lines)


def test_a_variant_and_a_leaf(capsys: pytest.CaptureFixture[str]) -> None:
    page = explained(capsys, "stages.rl.algorithm")
    assert "in every variant:\n  group_size: whole number ≥ 2; default: 16\n" in page
    assert "name: gspo – Clipping of each sequence's ratio" in page
    assert page.count("group_size") == 1
    page = explained(capsys, "max_pixels")
    assert "model.max_pixels" in page
    assert "curation.endpoints.<name>.checkpoint.max_pixels" in page


def test_all_writes_out_what_is_inside(capsys: pytest.CaptureFixture[str]) -> None:
    assert "gpu_memory_utilization: number" not in explained(capsys, "stages.rl")
    assert "gpu_memory_utilization: number" in explained(capsys, "stages.rl", "--all")


def test_a_wrong_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "stages.rl.algoritm"]) == 2
    assert "did you mean stages.rl.algorithm?" in capsys.readouterr().err


def test_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "ray", "vllm", "transformers", "cv2", "pyarrow")
    code = (
        "import sys; from posttrain.cli.main import main; main(['explain', 'stages.rl']); "
        f"print(sorted(set({heavy!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
