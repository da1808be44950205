import json

from posttrain.run.record import record_places
from posttrain.run.rows import MetricsRow
from posttrain.viewer.records import MAX_STEPS, read_contents
from posttrain.viewer.summary import environment_facts


def test_only_finite_numbers_are_figures(tmp_path):
    values = ["null", "NaN", "Infinity", "true", '"x"', "0.25", "1e999", "1" + "0" * 400]
    lines = [f'{{"stage": "rl", "step": {step}, "loss": {value}}}\n' for step, value in enumerate(values)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    steps = read_contents(tmp_path).metrics["rl"]
    assert {
        step: row.figures["loss"] for step, row in steps.items() if row.figures.get("loss") is not None
    } == {5: 0.25}


def test_long_runs_are_thinned_and_keep_both_ends(tmp_path):
    lines = [json.dumps({"stage": "rl", "step": step, "loss": step}) + "\n" for step in range(9_001)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    steps = list(read_contents(tmp_path).metrics["rl"])
    assert MAX_STEPS / 2 <= len(steps) <= MAX_STEPS
    assert (steps[0], steps[-1]) == (0, 9_000)


def test_figures_of_one_step_logged_apart_are_merged(tmp_path):
    rows = [
        {"stage": "rl", "step": 2, "a": 1},
        {"stage": "rl", "step": 1, "a": 2},
        {"stage": "rl", "step": 2, "b": 3},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_contents(tmp_path).metrics["rl"].items()) == [
        (1, MetricsRow("rl", 1, figures={"a": 2})),
        (2, MetricsRow("rl", 2, figures={"a": 1, "b": 3})),
    ]


def test_first_and_last_steps_are_read_in_order_of_their_numbers(finished_run):
    read = {(each.phase, each.row.step) for each in read_contents(finished_run).candidates}
    assert read == {("first", 1), ("first", 2), ("last", 59), ("last", 60), ("evaluation", 0)}


def test_the_report_says_where_processes_were(finished_run):
    places = {"learners": ["10.0.0.1 (GPU 0)", "10.0.0.1 (GPU 1)"], "engines": ["10.0.0.2"] * 2}
    (finished_run / "rl").mkdir(exist_ok=True)
    record_places(finished_run / "rl", places)
    read = read_contents(finished_run)
    assert read.places == {"rl": "learners on 10.0.0.1 (GPU 0), 10.0.0.1 (GPU 1); engines on 10.0.0.2 × 2"}
    assert ("rl ran with", read.places["rl"]) in environment_facts(read)
