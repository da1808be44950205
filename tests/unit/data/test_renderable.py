"""Datasets without the rows that a model cannot be shown: what is drawn, named, counted and kept."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.cli.main import main
from posttrain.config import DatasetConfig, ModelConfig, RunConfig
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset
from posttrain.data.formats import DataError
from posttrain.data.mixing import Mixture
from posttrain.data.renderable import without_unrenderable
from posttrain.data.sources import forget_opened, load_samples, open_mixture
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.row_checks import RenderCheck, local_checkpoint
from posttrain.run.directory import RunDir
from posttrain.training.data_check import BROKEN_ROWS, check_run_data


@pytest.fixture(scope="module")
def check(tiny_checkpoint: Path) -> RenderCheck:
    return RenderCheck(Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl"), "dialogues")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    forget_opened()
    return tmp_path / "cache"


def line(number: int, text: str, **more: object) -> str:
    said = [{"role": "user", "content": text}, {"role": "assistant", "content": "A mug."}]
    return json.dumps({"id": str(number), "messages": said} | more) + "\n"


def write(folder: Path, texts: list[str], **settings: object) -> DatasetConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(line(number, text) for number, text in enumerate(texts)))
    about = {"name": "rows", "description": "d", "licence": "MIT", "source": {"path": str(path)}}
    (folder / "rows.yaml").write_text(yaml.safe_dump(about | settings))
    return DatasetConfig.model_validate(about | settings)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(st.lists(st.booleans(), min_size=2, max_size=12).filter(any))
def test_draws_are_those_of_the_file_without_such_rows(
    check: RenderCheck, tmp_path: Path, good: list[bool]
) -> None:
    """So the order depends on the seed and the usable rows alone, whoever draws and from whichever cache."""
    lines = [line(number, "What?" if fine else "<|im_end|>") for number, fine in enumerate(good)]
    (tmp_path / "all.jsonl").write_text("".join(lines))
    (tmp_path / "some.jsonl").write_text(
        "".join(each for each, fine in zip(lines, good, strict=True) if fine)
    )
    (tmp_path / "file").touch()
    whole = Dataset(check_rows(tmp_path / "all.jsonl"), "dialogues")
    some = Dataset(check_rows(tmp_path / "some.jsonl"), "dialogues")
    expected = [Mixture({"d": some}, {"d": 1.0}, seed=3).index(draw)[1] for draw in range(30)]
    for folder in (tmp_path / "cache", tmp_path / "cache", tmp_path / "file" / "no folder"):
        left = without_unrenderable(whole, check, folder)
        mixture = Mixture({"d": left}, {"d": 1.0}, seed=3)
        assert [left[mixture.index(draw)[1]].id for draw in range(30)] == [some[row].id for row in expected]
        bad = [number for number, fine in enumerate(good, 1) if not fine]
        assert [row.place for row in left.broken] == [f"{tmp_path}/all.jsonl:{number}" for number in bad]
        assert left.fingerprint == whole.fingerprint
    shutil.rmtree(tmp_path / "cache")


def test_rows_count_in_the_share_and_are_named(check: RenderCheck, tmp_path: Path, cache: Path) -> None:
    texts = ["What?"] * 60 + ["What does <|endoftext|> mean?"]
    with pytest.raises(
        DataError, match=r"1 of 61 rows are broken, more than 1\.0%(?s:.*)rows\.jsonl:61: user text"
    ):
        load_samples(write(tmp_path, texts), tmp_path, use="dialogues", check=check)
    config = write(tmp_path, texts, max_bad_share=0.02)
    opened = load_samples(config, tmp_path, use="dialogues", check=check)
    assert len(opened) == 60
    assert [row.place for row in opened.broken] == [f"{tmp_path}/rows.jsonl:61"]
    name = str(tmp_path / "rows.yaml")
    mixture = open_mixture({name: 1.0}, 0, tmp_path, use="dialogues", check=check)
    assert len(mixture) == 60
    lengths = load_samples(config, tmp_path, use="dialogues")
    assert lengths.identity != opened.identity


def test_a_row_is_named_where_it_came_from(check: RenderCheck, tmp_path: Path, cache: Path) -> None:
    """In a file that was rewritten, too, beside rows that could not be."""
    said = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "A"}]
        for text in ("a<|im_end|>", "b")
    ]
    rows = [{"messages": 1}, *({"messages": each} for each in said)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = {"name": "rows", "description": "d", "licence": "MIT", "source": {"path": "rows.jsonl"}}
    config = DatasetConfig.model_validate(about | {"format": "openai", "max_bad_share": 0.9})
    opened = load_samples(config, tmp_path, use="dialogues", check=check)
    assert [row.place for row in opened.broken] == [f"{tmp_path}/rows.jsonl:{number}" for number in (1, 2)]
    assert [sample.messages[0].text for sample in (opened[0],)] == ["b"]


@pytest.mark.parametrize(
    "damage", ["", "{", '{"rows": 1, "reasons": []}', '{"rows": 3, "reasons": [["x", 1]]}', "[]"]
)
def test_damaged_reasons_are_found_again(check: RenderCheck, tmp_path: Path, damage: str) -> None:
    write(tmp_path, ["a", "<|im_end|>", "b"])
    whole = Dataset(check_rows(tmp_path / "rows.jsonl"), "dialogues")
    first = without_unrenderable(whole, check, tmp_path / "cache").broken
    [file] = (tmp_path / "cache").glob("renderable-*/reasons.json")
    file.write_text(damage)
    assert without_unrenderable(whole, check, tmp_path / "cache").broken == first


def test_a_run_and_validate_tell_of_them_at_once(
    tiny_checkpoint: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ["What?"] * 9 + ["<|im_start|>"], max_bad_share=0.2)
    about = {
        "name": "mine",
        "output_dir": str(tmp_path / "runs"),
        "model": {"name_or_path": str(tiny_checkpoint), "dtype": "float32"},
        "cluster": {"num_gpus": 0},
        "stages": [{"stage": "sft", "data": {"mixture": {"rows.yaml": 1.0}}, "max_steps": 1}],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(about))
    config = RunConfig.model_validate(about | {"base_dir": str(tmp_path)})
    run = RunDir.create(config, resume=False)
    check_run_data(config, run)
    [told] = [json.loads(each) for each in (run.path / BROKEN_ROWS).read_text().splitlines()]
    assert told["place"] == f"{tmp_path}/rows.jsonl:10"
    assert "<|im_start|>" in told["reason"]

    # What the run found is known to `validate`, which then need not load transformers.
    code = (
        "import sys; from posttrain.cli.main import main; code = main(['validate', sys.argv[1]]);"
        "sys.exit(code or 10 * bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mine.yaml")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found
    assert "1 of 10 rows are broken and were left out" in found.stderr
    write(tmp_path, ["What?"] * 9 + ["<|im_start|>"])
    assert main(["validate", str(tmp_path / "mine.yaml")]) == 2
    assert "rows.jsonl:10: user text contains the control token" in capsys.readouterr().err


def test_validate_says_what_it_could_not_look_at(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ["<|im_start|>"])
    about = {
        "name": "mine",
        "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"},
        "cluster": {"num_gpus": 0},
        "stages": [{"stage": "sft", "data": {"mixture": {"rows.yaml": 1.0}}, "max_steps": 1}],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(about))
    assert local_checkpoint(ModelConfig(name_or_path="Qwen/Qwen3-VL-2B-Instruct")) is None
    assert main(["validate", str(tmp_path / "mine.yaml"), "--gpus", "1"]) == 0
    assert "seen when a stage starts: Qwen/Qwen3-VL-2B-Instruct is not here" in capsys.readouterr().out
    assert main(["validate", "quickstart"]) == 0
    assert "generated when the run starts were not looked at: " in capsys.readouterr().out


@pytest.mark.parametrize(("share", "code"), [(0.01, 1), (0.5, 0)])
def test_an_inspection_looks_at_every_row(
    tiny_checkpoint: Path,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    share: float,
    code: int,
) -> None:
    write(tmp_path, ["What?"] * 5 + ["<|im_start|>"] + ["What?"] * 4, max_bad_share=share)
    arguments = ["--model", str(tiny_checkpoint), "--output", str(tmp_path / "page.html")]
    few = ["--num-samples", "1", "--measure", "2"]
    assert main(["data", "inspect", str(tmp_path / "rows.yaml"), *arguments, *few]) == code
    told = capsys.readouterr().out
    assert "9 rows are usable, 1 broken; 2 were measured" in told
    assert "rows.jsonl:6: " in told
    assert "rows.jsonl:6" in (tmp_path / "page.html").read_text()
