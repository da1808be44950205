"""`posttrain compare`: what two runs, or two stages, have recorded of the same prompts."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from posttrain.cli.main import main
from posttrain.evaluation.outcomes import OutcomesError, read_outcomes
from posttrain.evaluation.paired import compare
from posttrain.evaluation.statistics import mcnemar_exact, paired_difference_interval
from posttrain.run.record import read_record
from posttrain.run.rows import EVALUATION, EpisodeRow, EvaluationRow, write_rows
from posttrain.types import Block, ImageRef, RewardResult, text_message
from tests.unit.viewer.pages import Page


@dataclass(frozen=True)
class Prompt:
    name: str
    right: tuple[bool, ...]
    gold: str = "K"
    sha256: str = "a"


def write_run(folder: Path, origins: dict[str, str], evaluated: dict[str, list[Prompt]]) -> Path:
    """A run's directory as far as its evaluations go: by stage, what became of the prompts."""
    folder.mkdir()
    stages = [{"stage": "sft", "name": name, "start_from": start} for name, start in origins.items()]
    evaluation = {
        "tasks": [{"name": "letters", "rewards": [{"name": "answer_accuracy"}, {"name": "format"}]}]
    }
    settings = {"name": folder.name, "stages": stages, "evaluation": evaluation}
    (folder / "resolved.json").write_text(json.dumps(settings))
    write_rows(folder / EVALUATION, [EvaluationRow(stage, "letters", 9) for stage in evaluated])
    for stage, prompts in evaluated.items():
        write_rows(folder / "rollouts" / f"evaluation-{stage}-letters.jsonl", [
            episode(prompt, number, right)
            for prompt in prompts
            for number, right in enumerate(prompt.right)
        ])  # fmt: skip
    return folder


def episode(prompt: Prompt, number: int, right: bool) -> EpisodeRow:
    asked = replace(text_message("user", f"Which letter is on {prompt.name}?"), content=(
        Block("image", image=ImageRef("images/scene.png", prompt.sha256)),
        Block("text", text=f"Which letter is on {prompt.name}?"),
    ))  # fmt: skip
    said = text_message("assistant", prompt.gold if right else f"<script>{number}</script>")
    verdict = RewardResult(0.0, values={"format": 1.0, "answer_accuracy": float(right)})
    return EpisodeRow(
        "s", 0, prompt.name, "letters", 0, number, (asked, said), 1, (), (), prompt.gold, verdict
    )


def prompts(*right: int, several: int = 1) -> list[Prompt]:
    return [Prompt(f"p{i}", (True,) * count + (False,) * (several - count)) for i, count in enumerate(right)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    before, after = prompts(*[0] * 12, 1, 1, 1, 0), prompts(*[1] * 12, 1, 0, 1, 0)
    return write_run(tmp_path / "run", {"sft": "base", "rl": "sft"}, {"sft": before, "rl": after})


def test_each_prompt_keeps_what_became_of_it(run: Path):
    record = read_record(run)
    first, second = (read_outcomes(run, record, stage, "letters") for stage in ("sft", "rl"))
    pair = compare(first, second)
    assert (pair.n, pair.first, pair.second, pair.single) == (16, 3 / 16, 14 / 16, True)
    assert pair.gained == tuple(f"p{i}" for i in range(12))
    assert pair.lost == ("p13",)
    assert pair.p == mcnemar_exact(12, 1)
    assert (pair.low, pair.high) == paired_difference_interval(2, 12, 1, 1)


def test_several_answers_are_compared_by_their_shares(tmp_path: Path):
    before, after = prompts(*[1, 2] * 20, several=4), prompts(*[3, 2] * 20, several=4)
    run = write_run(tmp_path / "run", {"sft": "base", "rl": "sft"}, {"sft": before, "rl": after})
    record = read_record(run)
    pair = compare(*(read_outcomes(run, record, stage, "letters") for stage in ("sft", "rl")))
    assert (pair.first, pair.second, pair.single) == (0.375, 0.625, False)
    assert (len(pair.gained), len(pair.lost)) == (20, 0)
    assert 0.17 < pair.low < 0.2 < 0.3 < pair.high < 0.33  # 0.25 ± 1.96 × 0.25 / √40
    assert pair.p < 0.001


def test_the_command_compares_each_stage_with_its_start(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", str(run)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].split()[:6] == ["letters", "sft", "rl", "18.8", "%", "87.5"]
    assert (
        len([line for line in table if line.startswith("letters")]) == 1
    )  # sft's own start was not measured


def test_two_runs_are_matched_by_names_and_the_page_shows_what_changed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = write_run(tmp_path / "other", {"rl": "base"}, {"rl": prompts(*[1] * 14, 0, 0)})
    assert main(["compare", str(run), str(other), "--page", str(tmp_path / "flipped.html")]) == 0
    out = capsys.readouterr().out
    assert "run rl" in out
    assert "other rl" in out
    page = Page(tmp_path / "flipped.html")
    assert "Which letter is on p13?" in page.visible
    assert "Which letter is on p3?" not in page.visible  # both are right
    assert page.all("script") == []
    assert "<script>0</script>" in page.visible  # what a model wrote is text
    assert main(["compare", str(run), str(other), "--stage", "sft", "rl", "--task", "letters"]) == 0
    assert "run sft" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (prompts(1, 1), r"of 3 and 2, 1 are only in the first, such as 'p2'"),
        ([*prompts(1, 1, 0), Prompt("new", (True,))], r"1 are only in the second, such as 'new'"),
        ([*prompts(1, 1), Prompt("p2", (True,), gold="Q")], r"1 have one id and another text, image or gold"),
        ([*prompts(1, 1), Prompt("p2", (True,), sha256="b")], r"such as 'p2'.*same dataset"),
    ],
)
def test_other_prompts_are_refused(tmp_path: Path, changed: list[Prompt], says: str):
    one = write_run(tmp_path / "one", {"rl": "base"}, {"rl": prompts(1, 0, 1)})
    two = write_run(tmp_path / "two", {"rl": "base"}, {"rl": changed})
    first, second = (read_outcomes(each, read_record(each), "rl", "letters") for each in (one, two))
    with pytest.raises(OutcomesError, match=says):
        compare(first, second)


def test_what_was_not_measured_is_told_with_what_was(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", str(run), "--task", "words"]) == 2
    assert "sft (letters), rl (letters)" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", str(tmp_path)]) == 2
    assert "holds no run that can be read" in capsys.readouterr().err


def test_an_answer_that_was_not_scored_is_no_wrong_one(run: Path):
    path = run / "rollouts" / "evaluation-rl-letters.jsonl"
    path.write_text(path.read_text().replace('"answer_accuracy": 1.0', '"answer_accuracy": null', 1))
    with pytest.raises(OutcomesError, match="has no answer_accuracy"):
        read_outcomes(run, read_record(run), "rl", "letters")
