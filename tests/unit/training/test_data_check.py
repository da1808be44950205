"""A run's data before anything starts: broken rows are counted and told, changed data stop the run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from posttrain.config import RunConfig
from posttrain.data.formats import DataError
from posttrain.data.sources import forget_opened
from posttrain.run.directory import ChangedRun, RunDir
from posttrain.training import pipeline
from posttrain.training.data_check import BROKEN_ROWS, check_run_data
from tests.unit.media.test_images import BAD_FILES

ROWS = 10_000
STAGES = {
    "sft": {"stage": "sft", "data": {"mixture": {"rows": 1.0}}, "max_steps": 1},
    "dpo": {"stage": "dpo", "data": {"mixture": {"rows": 1.0}}, "eval_dataset": "held"},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_dataset(folder: Path, name: str, lines: list[str], **keys: Any) -> None:
    (folder / "datasets_cfg").mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    dataset = {"name": name, "description": "rows", "licence": "MIT", "source": {"path": f"../{name}.jsonl"}}
    (folder / "datasets_cfg" / f"{name}.yaml").write_text(yaml.safe_dump(dataset | keys))


def row(number: int, stage: str, image: str = "good.png", **changes: Any) -> str:
    asked = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "?"}]}]
    replies = [[{"role": "assistant", "content": text}] for text in ("K", "L")]
    whole: dict[str, Any] = {"id": str(number), "messages": asked}
    if stage == "dpo":
        whole |= {"chosen": replies[0], "rejected": replies[1]}
    else:
        whole["messages"] = [*asked, *replies[0]]
    return json.dumps({key: value for key, value in (whole | changes).items() if value is not None})


def broken_rows(folder: Path, stage: str) -> list[str]:
    """A row of each kind of damage: in its form, in its use, and in its image."""
    for name, (content, _) in BAD_FILES.items():
        (folder / name).write_bytes(content)
    asked = [{"role": "user", "content": "?"}]
    answered = [{"role": "assistant", "content": [{"type": "image", "image": "truncated.jpg"}]}]
    use = {
        "sft": [row(-1, stage, messages=asked), row(-2, stage, messages=[*asked, *answered])],
        "dpo": [
            row(-1, stage, rejected=None),
            row(-2, stage, chosen=None, rejected=None),
            row(-3, stage, rejected=[{"role": "assistant", "content": "K"}]),
            row(-4, stage, chosen=answered),
        ],
    }[stage]
    return [
        "{",
        "null",
        "[1]",
        row(-9, stage, messages=[]),
        *use,
        *(row(-8, stage, name) for name in BAD_FILES),
    ]


FILTERS = [{"column": "id", "one_of": ["0", "1", "2"]}]


def config_of(folder: Path, stage: dict[str, Any]) -> RunConfig:
    model = {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}
    settings = {"name": "run", "output_dir": str(folder / "runs"), "base_dir": str(folder), "model": model}
    return RunConfig.model_validate(settings | {"stages": [stage]})


@pytest.mark.parametrize("stage", STAGES)
def test_ten_thousand_rows_with_five_percent_broken(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    kinds = broken_rows(tmp_path, stage)
    bad = set(range(20, ROWS + 1, 20))
    lines = [kinds[n // 20 % len(kinds)] if n in bad else row(n, stage) for n in range(1, ROWS + 1)]
    write_dataset(tmp_path, "rows", lines)
    write_dataset(tmp_path, "held", [row(1, "dpo")])
    config = config_of(tmp_path, STAGES[stage])
    monkeypatch.setattr(pipeline, "cluster", lambda **_: pytest.fail("something was started"))
    with pytest.raises(
        DataError, match=r"500 of 10,000 rows are broken, more than 1\.0%(?s:.*)rows\.jsonl:20: "
    ):
        pipeline.run(config)

    write_dataset(tmp_path, "rows", lines, max_bad_share=0.05)
    run = RunDir.create(config, resume=True)
    check_run_data(config, run)
    told = [json.loads(line) for line in (run.path / BROKEN_ROWS).read_text().splitlines()]
    assert {item["place"] for item in told} == {f"{tmp_path}/rows.jsonl:{number}" for number in bad}
    assert len(told) == len(bad)
    assert all(item["reason"] and item["dataset"] == "rows" for item in told)


def test_a_run_with_whole_data_lists_nothing(tmp_path: Path) -> None:
    run = data_of_two(tmp_path)
    assert (run.path / BROKEN_ROWS).read_text() == ""


def data_of_two(folder: Path) -> RunDir:
    for name in ("good.png", "seen.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    write_dataset(folder, "rows", [row(number, "dpo") for number in range(4)])
    write_dataset(folder, "held", [row(number, "dpo", "seen.png") for number in range(2)])
    config = config_of(folder, STAGES["dpo"])
    run = RunDir.create(config, resume=False)
    check_run_data(config, run)
    return run


def append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda folder: append(folder / "rows.jsonl", row(9, "dpo")), "rows", id="training"),
        pytest.param(lambda folder: append(folder / "held.jsonl", row(9, "dpo")), "held", id="held out"),
        pytest.param(
            lambda folder: Image.new("RGB", (8, 8), "red").save(folder / "seen.png"), "held", id="image"
        ),
        pytest.param(
            lambda folder: write_dataset(folder, "rows", [row(n, "dpo") for n in range(4)], filters=FILTERS),
            "rows",
            id="filters",
        ),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_changed_data_stop_the_run_unless_told_otherwise(
    change: Callable[[Path], object],
    named: str,
    finished: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of stages that are finished as well: what follows would start from something else."""
    run = data_of_two(tmp_path)
    config = config_of(tmp_path, STAGES["dpo"])
    check_run_data(config, RunDir.create(config, resume=True))
    if finished:
        checkpoint = run.save_checkpoint("dpo", 1, lambda path: (path / "weights").touch())
        run.finish_stage("dpo", checkpoint)
    change(tmp_path)
    forget_opened()
    monkeypatch.setattr(pipeline, "cluster", lambda **_: pytest.fail("something was started"))
    with pytest.raises(
        ChangedRun, match=rf"the data of {named} changed since the run began.*--allow-changes"
    ):
        pipeline.run(config, resume=True)
    check_run_data(config, RunDir.create(config, resume=True, allow_changes=True))


def test_moved_data_are_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    data_of_two(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    config = config_of(tmp_path / "there", STAGES["dpo"])
    check_run_data(config, RunDir.create(config, resume=True))
