"""Curation as the first half of an sft stage."""

import json
from pathlib import Path

from posttrain.config import RunConfig, SftStage
from posttrain.first_party import PLUGINS
from posttrain.run.directory import RunDir
from posttrain.training.engines_and_rewards import EnginesAndRewards
from posttrain.training.run_at_work import RunAtWork
from posttrain.training.supervised.runners import SftRunner


def test_what_is_kept_takes_the_place_of_what_the_mixture_names(tmp_path: Path) -> None:
    """The mixture may call a dataset by its path, and its YAML by yet another name."""
    dialogue = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Four of them."}]
    rows = [{"id": str(number), "messages": dialogue} for number in range(4)]
    rows[2]["messages"] = [dialogue[0], {"role": "assistant", "content": "so " * 400}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = "name: another\ndescription: d\nlicence: MIT\nsource: {path: rows.jsonl}\n"
    (tmp_path / "mine.yaml").write_text(about)
    (tmp_path / "own.yaml").write_text("name: own\ndata: mine.yaml\nsteps: [{filter: response}]\n")
    stage = {"stage": "sft", "max_steps": 1, "data": {"mixture": {"mine.yaml": 1.0}}, "curation": "own.yaml"}
    config = RunConfig.model_validate(
        {
            "name": "run",
            "output_dir": str(tmp_path / "runs"),
            "base_dir": str(tmp_path),
            "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"},
            "stages": [stage],
        }
    )
    run = RunDir.create(config, resume=False)
    work = RunAtWork(config, run, EnginesAndRewards(config, run, PLUGINS), PLUGINS)
    [sft] = config.stages
    assert isinstance(sft, SftStage)
    replaced = SftRunner(work, sft).prepared()
    assert list(replaced) == list(sft.mixture)
    kept = Path(str(replaced["mine.yaml"].source.path)).read_text().splitlines()
    assert [json.loads(row)["id"] for row in kept] == ["0", "1", "3"]
