from posttrain.evaluation.table import TRACK_WIDTH, evaluation_table, rewards_table
from posttrain.run.rows import EvaluationRow


def row(
    stage: str, task: str, accuracy: float | None = 0.5, low: float | None = 0.4, high: float | None = 0.6
) -> EvaluationRow:
    return EvaluationRow(stage, task, 0, 400, accuracy, low, high)


def test_reads_as_a_table():
    rows = [
        row("sft", "with_tool", 0.33, 0.286, 0.377),
        row("sft", "without_tool", 0.148, 0.116, 0.186),
        row("rl", "with_tool", 0.7, 0.653, 0.743),
        row("rl", "without_tool", 0.115, 0.087, 0.15),
    ]
    assert evaluation_table(rows) == "\n".join(
        (
            "task          after  accuracy  95 % interval    n  0 %                                 100 %",
            "with_tool     sft      33.0 %    28.6 – 37.7  400  ───────────├─●─┤─────────────────────────",
            "              rl       70.0 %    65.3 – 74.3  400  ──────────────────────────├─●─┤──────────",
            "without_tool  sft      14.8 %    11.6 – 18.6  400  ─────├●┤─────────────────────────────────",
            "              rl       11.5 %     8.7 – 15.0  400  ───├─●┤──────────────────────────────────",
        )
    )


def test_shares_at_the_ends_stay_on_the_track():
    table = evaluation_table([row("sft", "a", 0.0, 0.0, 0.01), row("rl", "a", 1.0, 0.99, 1.0)])
    tracks = [line.rpartition("  ")[2] for line in table.splitlines()[1:]]
    assert tracks == ["●" + "─" * (TRACK_WIDTH - 1), "─" * (TRACK_WIDTH - 1) + "●"]


def test_what_is_missing_is_a_dash():
    assert "–" in evaluation_table([row("sft", "a", None, None, None)]).splitlines()[1]


def test_no_rows_are_told_in_words():
    assert evaluation_table([]) == "No evaluation has been recorded."


def test_the_mean_of_every_reward_is_told_whoever_wrote_it():
    rows = [
        EvaluationRow("sft", "a", metrics={"tool_calls": 0.5, "tokens": 12.0, "reward/my_own": 0.25}),
        EvaluationRow("sft", "b", metrics={"tokens": 7.0, "reward/math": 1.0}),
        EvaluationRow("rl", "a", metrics={"reward/my_own": 0.75}),
    ]
    assert rewards_table(rows) == "\n".join(
        (
            "task  after  my_own   math  tool_calls  tokens",
            "a     sft     0.250      –       0.500  12.000",
            "a     rl      0.750      –           –       –",
            "b     sft         –  1.000           –   7.000",
        )
    )
