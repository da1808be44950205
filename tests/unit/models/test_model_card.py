"""Model cards and exported files: nothing of this machine in them, and all that a stranger needs to know."""

import json
import os
import stat
from pathlib import Path

import pytest
import yaml

from posttrain.cli import main as cli
from posttrain.models.export import export
from posttrain.models.model_card import model_card


def make_run(folder: Path, model: str, **settings: object) -> Path:
    """Write what a run leaves that trained a model by SFT; return its checkpoint, without weights."""
    stages = [{"name": "sft", "stage": "sft", "data": {"mixture": {"chats": 0.5, "my/photos.yaml": 0.5}}}]
    resolved = {"name": folder.name, "model": {"name_or_path": model}, "stages": stages}
    checkpoint = folder / "sft" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (folder / "resolved.json").write_text(json.dumps(resolved))
    given = {"name": folder.name, "model": {"name_or_path": model}, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(given))
    return checkpoint


def header(card: str) -> dict[str, str]:
    return yaml.safe_load(card.partition("---\n")[2].partition("---\n")[0])


def test_a_model_of_the_hub_is_named_with_its_licence(tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path / "run", "Qwen/Qwen3-VL-2B-Instruct")
    assert header(model_card(checkpoint)) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "license": "other",
        "license_name": "as-the-base-model",
        "license_link": "https://huggingface.co/Qwen/Qwen3-VL-2B-Instruct",
        "base_model": "Qwen/Qwen3-VL-2B-Instruct",
    }
    said = header(model_card(checkpoint, licence="apache-2.0", base_model="me/base"))
    assert (said["license"], said["base_model"]) == ("apache-2.0", "me/base")
    assert "license_name" not in said


def test_the_base_is_found_through_the_runs_that_follow_one_another(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", "Qwen/Qwen2.5-VL-7B-Instruct")
    second = make_run(tmp_path / "second", str(first))
    third = make_run(tmp_path / "third", str(second))
    assert header(model_card(third))["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_runs_that_follow_one_another_in_a_circle_have_no_base(tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path / "run", str(tmp_path / "run" / "sft" / "checkpoint-3"))
    said = header(model_card(checkpoint))
    assert said["license"] == "unknown"
    assert "base_model" not in said


def test_a_copy_in_the_hubs_cache_is_called_by_its_name_there(tmp_path: Path) -> None:
    copy = tmp_path / "models--Qwen--Qwen3-VL-4B-Instruct" / "snapshots" / "abc"
    copy.mkdir(parents=True)
    (copy / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: Qwen/Qwen3\n---\n# Qwen\n")
    said = header(model_card(make_run(tmp_path / "run", str(copy))))
    assert (said["base_model"], said["license"]) == ("Qwen/Qwen3-VL-4B-Instruct", "apache-2.0")


@pytest.mark.parametrize("card", ["", "no head", "---\n[\n---\n", "---\n- a list\n---\n"])
def test_a_folder_that_says_nothing_of_itself_is_called_by_its_last_part(tmp_path: Path, card: str) -> None:
    model = tmp_path / "secret-project" / "my-model"
    model.mkdir(parents=True)
    (model / "README.md").write_text(card)
    written = model_card(make_run(tmp_path / "run", str(model)))
    assert "Made from `my-model`" in written
    assert "secret-project" not in written


def test_the_card_tells_the_datas_licences_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    settings = {
        "output_dir": str(tmp_path),
        "base_dir": str(tmp_path),
        "stages": [{"stage": "sft", "data": {"mixture": {f"{tmp_path}/photos.yaml": 1.0}}}],
        "rewards": [f"{tmp_path}/mine.py:good", "~/other.py:bad", "math"],
    }
    run = tmp_path / "run"
    checkpoint = make_run(run, str(tmp_path / "model"), **settings)
    (run / "licences.json").write_text(json.dumps({"chats": "CC-BY-4.0"}))
    card = model_card(checkpoint)
    assert "| sft | chats | 50% | CC-BY-4.0 |  |" in card
    assert "| sft | photos | 50% | not recorded |  |" in card
    assert "…/mine.py:good" in card
    assert "…/other.py:bad" in card
    assert str(tmp_path) not in card
    assert "~/" not in card


def test_what_is_exported_can_be_read_by_all_and_names_no_place(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = tmp_path / "checkpoint-1"
    source.mkdir()
    for path in tiny_checkpoint.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "model.safetensors").chmod(0o600)
    for name in ("config.json", "tokenizer_config.json"):
        stored = json.loads((source / name).read_text())
        placed = {"_name_or_path": str(tmp_path / "base"), "text": [{"name_or_path": "/data/model"}]}
        (source / name).write_text(json.dumps(stored | placed | {"auto": {"name_or_path": "Qwen/x"}}))
    before = os.umask(0o022)
    try:
        export(source, tmp_path / "out")
    finally:
        os.umask(before)
    for path in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path
        if path.suffix == ".json" and path.name != "tokenizer.json":
            assert str(tmp_path) not in path.read_text(), path
            assert "/data/model" not in path.read_text(), path
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto"] == {"name_or_path": "Qwen/x"}


def test_the_command_line_takes_the_licence_and_the_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = ["export", str(tiny_checkpoint), "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--licence", "mit", "--base-model", "me/tiny"]) == 0
    said = header((tmp_path / "out" / "README.md").read_text())
    assert (said["license"], said["base_model"]) == ("mit", "me/tiny")
