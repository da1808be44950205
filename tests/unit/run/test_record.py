"""What a run records of its settings, of today's layout and of older ones."""

from pathlib import Path

import pytest

from posttrain.config import build_run, read_run, recipe_names
from posttrain.run.record import RunRecord, StageRecord, read_record

OLD_RUN = Path(__file__).parent / "old_run"


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_record_says_what_the_config_says(recipe: str) -> None:
    config = build_run(read_run(recipe))
    record = RunRecord.from_json(config.model_dump(mode="json"))
    assert record.origins == config.origins
    assert [stage.name for stage in record.stages] == [stage.name for stage in config.stages]
    assert record.name == config.name
    assert record.model == (config.model.name_or_path or "")


def test_an_old_run_tells_its_stages() -> None:
    record = read_record(OLD_RUN)
    assert record.origins == {
        "sft": "tiny_model",
        "cold_start": "sft",
        "distillation": "sft",
        "dpo": "sft",
        "rl": "sft",
    }
    assert [stage.name for stage in record.lineage("rl")] == ["tiny_model", "sft", "rl"]
    assert [stage.steps for stage in record.stages] == [500, 500, 50, 50, 24, 40]
    rl = record.stages[-1]
    assert (rl.kind, rl.metric, rl.logprob_tolerance) == ("rl", "with_tool", 1e-4)
    assert rl.shares == {"markers_train": 1.0}
    assert rl.tasks[0].weights == {"answer_accuracy": 1.0, "tool_calls": 0.2}
    assert rl.tasks[0].tools == ("image_zoom_in",)
    assert record.stages[2].mixture == {"markers_thinking": 1.0}
    assert (record.name, record.model, record.seed, record.evaluated) == ("quickstart", "", "0", True)


def test_a_lineage_ends_where_it_makes_no_sense() -> None:
    def stage(name: str, origin: str | None) -> StageRecord:
        return StageRecord(name, "sft", origin, None, None, None, 0, {}, ())

    record = RunRecord(stages=(stage("a", "b"), stage("b", "a"), stage("c", "c")))
    assert [each.name for each in record.lineage("b")] == ["a", "b"]
    assert [each.name for each in record.lineage("c")] == ["c"]
    assert record.lineage("nowhere") == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stages": 3}'])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "resolved.json").write_text(text)
    with pytest.raises(ValueError, match=r"stages|Expecting"):
        read_record(tmp_path)
