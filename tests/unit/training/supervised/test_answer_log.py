"""The log of answers: what a crash leaves of it are answers with all that belongs to them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from posttrain.files.line_log import LineLogError
from posttrain.files.strict_json import JsonObject
from posttrain.inference.engine import TopTokens
from posttrain.training.supervised.answer_log import LOG, AnswerLine, AnswerLog, read_top_tokens

QUESTIONS = 9
BATCH = 3


def top_of(question: int) -> TopTokens | None:
    """Log-probs that tell whose they are; every fourth answer has none."""
    if question % 4 == 3:
        return None
    shape = (question + 1, 2)
    return TopTokens(np.full(shape, question, np.int32), np.full(shape, -question, np.float32))


def line_of(question: int) -> AnswerLine:
    return AnswerLine(question, f"été {question}", token_ids=(7,) * (question + 1))


def fill(log: AnswerLog) -> None:
    """Ask what is missing, in batches."""
    todo = [question for question in range(QUESTIONS) if question not in log or question in log.failed]
    for start in range(0, len(todo), BATCH):
        batch = todo[start : start + BATCH]
        log.append([line_of(question) for question in batch], [top_of(question) for question in batch])


def check(folder: Path, log: AnswerLog) -> int:
    """Everything that is there is whole; how many answers there are."""
    found = [question for question in range(QUESTIONS) if question in log]
    for question in found:
        line, top = log.read(question), top_of(question)
        assert dataclasses.replace(line, shard="", start=0) == line_of(question)
        assert bool(line.shard) == (top is not None)
        if top is not None:
            stored = read_top_tokens(folder, line.shard, line.start, question + 1)
            assert (stored.ids == top.ids).all()
            assert (stored.logprobs == top.logprobs).all()
    return len(found)


def test_every_prefix_of_the_writes_is_gone_on_with(tmp_path: Path, soak: bool) -> None:
    """Shards are whole or absent, by their renaming; so a crash leaves the files of some batches and a
    prefix of the log that speaks of no later shard."""
    whole = tmp_path / "whole"
    whole.mkdir()
    log = AnswerLog(whole)
    fill(log)
    assert check(whole, log) == QUESTIONS
    log.close()
    content = (whole / LOG).read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    near = {end + offset for end in [0, *ends] for offset in (-1, 0, 1, 20)}
    for cut in range(len(content) + 1) if soak else sorted(near & set(range(len(content) + 1))):
        folder = tmp_path / str(cut)
        shutil.copytree(whole, folder)
        (folder / LOG).write_bytes(content[:cut])
        for shard in folder.glob("top-*"):  # those of batches that had not begun
            if int(shard.stem.removeprefix("top-")) > sum(end <= cut for end in ends) // BATCH * BATCH:
                shard.unlink()
        (folder / ".top-6.safetensors.tmp").write_bytes(b"half")
        again = AnswerLog(folder)
        assert check(folder, again) == sum(end <= cut for end in ends)
        fill(again)
        assert check(folder, again) == QUESTIONS
        again.close()
        reopened = AnswerLog(folder)
        assert check(folder, reopened) == QUESTIONS
        reopened.close()


def test_a_failure_is_kept_until_there_is_an_answer(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path)
    log.append([AnswerLine(0, error="busy"), line_of(1)])
    log.close()
    log = AnswerLog(tmp_path)
    assert log.failed == {0}
    log.append([line_of(0)])
    assert not log.failed
    log.close()
    log = AnswerLog(tmp_path)
    assert not log.failed
    assert log.read(0).text == "été 0"
    log.close()


def test_damage_before_the_end_is_an_error(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path)
    log.append([line_of(0), line_of(1)])
    log.close()
    path = tmp_path / LOG
    path.write_bytes(b"\x00" * 5 + path.read_bytes()[5:])
    with pytest.raises(LineLogError, match=r"answers.jsonl:1 is damaged .* --resume"):
        AnswerLog(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        {"question": 3, "error": "busy"},
        {"question": 3, "left_out": "cut off"},
        {"question": 3, "text": "K"},
        {"question": 3, "text": "K", "token_ids": [7, 8], "shard": "top-0.safetensors", "start": 0},
    ],
)
def test_a_line_is_written_as_it_was_read(line: JsonObject) -> None:
    assert json.dumps(AnswerLine.from_json(line).to_json()) == json.dumps(line)
