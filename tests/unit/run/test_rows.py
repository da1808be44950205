"""The rows of a run's files: what is written comes back, whoever wrote it and however it ended."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.failures import ToolFailure
from posttrain.run.rows import (
    EpisodeRow,
    EvaluationRow,
    MetricsRow,
    Row,
    RowError,
    parse_row,
    read_rows,
    row_line,
    write_rows,
)
from posttrain.types import Block, ImageRef, Message, RewardResult, ToolCall, text_message

OLD_RUN = Path(__file__).parent / "old_run"
EPISODE = EpisodeRow(
    stage="rl",
    step=3,
    sample_id="s7",
    task="markers",
    group=1,
    episode=2,
    messages=(
        Message("user", (Block("image", image=ImageRef("images/a.png", "ab")), Block("text", text="Which?"))),
        text_message("assistant", "K\u2028 or 文"),
    ),
    num_prompt_messages=1,
    tool_calls=(ToolCall("zoom", {"img_idx": 0}, ok=False, error="no", images=0, seconds=0.125),),
    failures=(ToolFailure("maps", "the server is down", 2.5),),
    ground_truth={"letter": "K"},
    reward=RewardResult(0.5, {"a": 0.5, "b": None}, {"a": {"part": 1.0}}, {"a": "why"}, {"b": "away"}),
    advantage=-0.25,
    stop_reason="answer",
    num_tokens=90,
    num_sampled=3,
    version=2,
)
ROWS: list[Row] = [
    MetricsRow("sft", 10, 1.5, {"loss": 0.25, "grad_norm": None}),
    EvaluationRow("sft", "letters", 10, 4, 0.75, 0.3, 0.95, {"tokens": 80.5}, 2.5),
    EvaluationRow("base", "pairs"),
    EPISODE,
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_what_is_written_comes_back(tmp_path: Path, row: Row) -> None:
    write_rows(tmp_path / "rows.jsonl", [row, row])
    back = list(read_rows(tmp_path / "rows.jsonl", type(row)))
    assert back == [row, row]
    assert repr(back[0]) == repr(row)  # also what rows are not compared by


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [("metrics.jsonl", MetricsRow), ("evaluation.jsonl", EvaluationRow), ("rollouts/**/*.jsonl", EpisodeRow)],
)
def test_rows_of_an_old_run_are_read_whole_and_written_as_they_were(pattern: str, kind: type[Row]) -> None:
    paths = list(OLD_RUN.glob(pattern))
    assert paths
    for path in paths:
        lines = path.read_text().splitlines()
        assert [json.loads(row_line(row)) for row in read_rows(path, kind)] == list(map(json.loads, lines))


def test_keys_of_other_versions_are_passed_over_and_absent_ones_are_neutral() -> None:
    newer = json.dumps({**EPISODE.to_json(), "thumbnail": "x", "reward": None}).encode()
    assert parse_row(newer, EpisodeRow).total is None
    assert parse_row(b'{"stage": "rl", "task": "a", "judge": [1]}', EvaluationRow) == EvaluationRow("rl", "a")
    older = parse_row(b'{"messages": [{"role": "user", "content": "hi"}]}', EpisodeRow)
    assert (older.prompt, older.response) == ((), (text_message("user", "hi"),))
    assert (older.reward, older.num_tokens, older.advantage, older.stop_reason) == (None, None, None, "")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"stage": "sft", "st', MetricsRow),
        (b"\xff\xfe", MetricsRow),
        (b"[1, 2]", EvaluationRow),
        (b"[" * 100_000, EvaluationRow),
        (b'{"stage": "sft", "loss": 1}', MetricsRow),
        (b'{"stage": "sft", "step": NaN}', MetricsRow),
        (b'{"stage": "rl", "step": 1}', EpisodeRow),
        (b'{"messages": [{"role": "pirate", "content": "arr"}]}', EpisodeRow),
        (b'{"messages": [3]}', EpisodeRow),
    ],
)
def test_a_line_that_is_no_row_is_told(tmp_path: Path, line: bytes, kind: type[Row]) -> None:
    with pytest.raises(RowError):
        parse_row(line, kind)
    path = tmp_path / "rows.jsonl"
    good = next(row for row in ROWS if isinstance(row, kind))
    path.write_bytes(row_line(good).encode() + b"\n" + line)
    told: list[Path] = []
    assert list(read_rows(path, kind, lambda where, _: told.append(where))) == [good]
    assert told == [path]


def test_a_broken_line_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage"')
    assert list(read_rows(tmp_path / "metrics.jsonl", MetricsRow)) == []
    assert "metrics.jsonl: passing over a line that cannot be read" in caplog.text
    assert list(read_rows(tmp_path / "absent.jsonl", MetricsRow)) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data(), row=st.sampled_from(ROWS))
def test_any_value_in_any_place_is_a_row_or_a_row_error(data: st.DataObject, row: Row) -> None:
    written = row.to_json()
    written[data.draw(st.sampled_from(sorted(written)))] = data.draw(JSON)
    try:
        read = parse_row(json.dumps(written).encode(), type(row))
    except RowError:
        return
    assert parse_row(row_line(read).encode("utf-8", "surrogatepass"), type(row)) == read
