"""`rewards new`, `check` and `score`: what an author of a reward works with."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from posttrain.cli import main as cli
from rewards.kit.check import check_reward
from rewards.kit.distribution import score_samples
from rewards.kit.samples import KEYS, SampleError, read_samples
from rewards.kit.skeleton import SkeletonError, write_skeleton

BAD_REWARDS = """
import itertools, time
import numpy as np
from rewards import from_trl, group_reward, reward

def right(x):
    return float(x.answer.strip() == x.ground_truth)

@reward("good")
def good(x):
    return right(x)

@reward("never_full")
def never_full(x):
    return 0.9 * right(x)

@reward("kind_to_silence")
def kind_to_silence(x):
    return max(right(x), float(not x.answer))

@reward("moody")
def moody(x, counter=itertools.count()):
    return right(x) / (1 + next(counter) % 7)

@reward("picky")
def picky(x):
    return float(x.answer == x.ground_truth)

@reward("fragile")
def fragile(x):
    if len(x.answer) > 1000:
        raise RecursionError("too deep")
    return right(x)

@reward("slow", deadline_s=0.2)
def slow(x):
    time.sleep(len(x.answer) // 1000)
    return right(x)

@reward("always_fails")
def always_fails(x):
    raise LookupError("no such thing")

@reward("none_applies")
def none_applies(x):
    return None

@reward("some_fail")
def some_fail(x):
    if x.ground_truth == "A":
        raise LookupError("cannot tell")
    return right(x)

@reward("limited")
def limited(x, longest=5):
    return right(x)

def half(completions, ground_truth, **_):
    return [0.5 * (c[0]["content"].strip() == g) for c, g in zip(completions, ground_truth)]

def kind(completions, ground_truth, **_):
    return [1.0 * (c[0]["content"].strip() in (g, "")) for c, g in zip(completions, ground_truth)]

def exact(completions, ground_truth, **_):
    return [1.0 * (c[0]["content"].strip() == g) for c, g in zip(completions, ground_truth)]

trl_half, trl_kind_to_silence, trl_right = from_trl(half), from_trl(kind), from_trl(exact)

@group_reward("shortest")
def shortest(xs):
    least = min(len(x.answer.strip()) for x in xs)
    return [float(len(x.answer.strip()) == least) for x in xs]

@group_reward("briefest_right")
def briefest_right(xs):
    lengths = [len(x.answer.strip()) if x.ground_truth in x.answer.split() else 999 for x in xs]
    return [float(length == min(lengths) < 999) for length in lengths]

@group_reward("numpy_group")
def numpy_group(xs):
    return np.array([right(x) for x in xs], dtype=np.float32)

@group_reward("group_of_a_prompt")
def group_of_a_prompt(xs):
    if len({x.prompt[0].text for x in xs}) != 1:
        raise ValueError("prompts are mixed")
    return [right(x) for x in xs]

@reward("too_large")
def too_large(x):
    return 2.0 * right(x)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(BAD_REWARDS)
    rows = [{"ground_truth": letter} for letter in "KAXBQ"]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def failed(folder: Path, name: str) -> set[str]:
    report = check_reward(
        f"mine.py:{name}", read_samples(folder / "samples.jsonl"), {}, folder, deadline_s=0.5
    )
    return {finding.check.partition(" (")[0] for finding in report.findings if finding.failures}


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("good", set()),
        ("never_full", {"right answers get full marks"}),
        ("kind_to_silence", {"an empty answer gets the least"}),
        ("picky", {"independent of white space around the answer"}),
        ("fragile", {"survives the attack corpus"}),
        ("slow", {"survives the attack corpus"}),
        ("too_large", {"finite, in range and within its deadline"}),
    ],
)
def test_each_fault_is_found(folder: Path, name: str, broken: set[str]) -> None:
    found = failed(folder, name)
    assert found >= broken
    assert bool(found) == bool(broken)


def test_a_reward_with_moods_is_found(folder: Path) -> None:
    assert {"the same twice", "independent of the order in the batch"} & failed(folder, "moody")


def test_new_check_score_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["rewards", "new", "neatness"]) == 0
    told, _, command = capsys.readouterr().out.rpartition("now: posttrain ")
    command = command.split()
    assert "test_neatness.py needs pytest" in told
    assert "pip install pytest" in told
    assert cli.main(command) == 0
    assert "✓ survives the attack corpus" in capsys.readouterr().out
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_neatness.py"]
    subprocess.run(test, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert cli.main(["rewards", "new", "neatness"]) == 2  # nothing is overwritten
    score = ["rewards", "score", "neatness.py:neatness", "--data", "neatness_samples.jsonl"]
    assert cli.main([*score, "--output", "scored.jsonl", "--params", '{"longest": 1}']) == 0
    assert "3 samples: 3 scored, 0 failed" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert [row["value"] for row in rows] == [0.0, 1.0, 0.0]


def test_check_exits_with_1_on_a_finding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(folder / "samples.jsonl"), "--base-dir", str(folder)]
    assert cli.main(["rewards", "check", "mine.py:never_full", *options]) == 1
    assert "✗ right answers get full marks (1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, "cannot name a Python function") for name in ("1st", "a-b", "", "../up")),
        ("for", "a word of Python's own"),
        ("answer_accuracy", "there is a reward 'answer_accuracy' already"),
        ("math", "there is a reward 'math' already"),
        *((name, f"which {name}.py would hide") for name in ("json", "datetime", "sys", "torch", "rewards")),
    ],
)
def test_names_that_cannot_be_a_reward_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(SkeletonError, match=re.escape(reason)):
        write_skeleton(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_samples_that_is_not_there(folder: Path) -> None:
    with pytest.raises(SampleError, match=r"there is no such file; did you mean samples\.jsonl\?"):
        read_samples(folder / "sample.jsonl")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "samples.jsonl:1"),
        ("[]", "not a JSON object"),
        ('{"ground_truth": {"boxes": []}}', "add `answer`"),
        ('{"answer": 3}', "add `answer`"),
        ('{"answer": "a", "messages": [{"role": "root", "content": ""}]}', "role"),
        ('{"answer": "a", "prompt": "a", "messages": []}', "keep one"),
        ('{"answer": "a", "messages": 3}', "no list of messages"),
        ('{"answer": "a", "messages": ["a"]}', "no list of messages"),
        ('{"answr": "a", "ground_truth": "K"}', "unknown key 'answr'; did you mean answer"),
        ('{"id": "seven", "answer": "a", "groundtruth": "K"}', r":1 \(seven\): .*did you mean ground_truth"),
        (
            '{"answer": "a", "response": "b"}',
            "unknown key 'response'; did you mean answer.*goes under `columns`",
        ),
        ('{"answer": "a", "Question": "?"}', "did you mean prompt"),
        ('{"answer": "a", "token_ids": [1]}', "did you mean completion_ids"),
        ('{"answer": "a", "toolcalls": []}', "did you mean tool_calls"),
        ('{"answer": "a", "tool_calls": {}}', "tool_calls is no list"),
        ('{"answer": "a", "tool_calls": [7]}', r"tool_calls\[0\] is no object"),
        ('{"answer": "a", "tool_calls": [{"name": "z", "args": {}}]}', "unknown key 'args'; did you mean"),
        ('{"answer": "a", "tool_calls": [{"arguments": {}}]}', "needs a name"),
        ('{"answer": "a", "tool_calls": [{"name": "z", "arguments": "{}"}]}', "arguments, an object"),
        ('{"answer": "a", "tool_calls": [{"name": "z", "ok": "yes"}]}', "ok must be true or false"),
        ('{"answer": "a", "tool_calls": [{"name": "z", "images": -1}]}', "how many images"),
        ('{"answer": "a", "tool_calls": [{"name": "z", "images": true}]}', "how many images"),
        ('{"answer": "a", "tool_calls": [{"name": "z", "images": ["no.png"]}]}', "there is no file .*no.png"),
        ('{"answer": "a", "prompt": "p", "images": ["no.png"]}', "there is no file .*no.png"),
        ('{"answer": "a", "prompt": "p", "images": "no.png"}', "images is no list of paths"),
        ('{"answer": "a", "prompt": 7}', "neither a text nor a list"),
        ('{"answer": "a", "columns": [1]}', "columns is no object"),
        ('{"answer": "a", "truncated": "no"}', "truncated is neither"),
        ('{"answer": null, "ground_truth": "K"}', "add `answer`"),
        ("", "holds no samples"),
    ],
)
def test_broken_samples_are_refused_with_file_and_line(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "samples.jsonl").write_text(row)
    with pytest.raises(SampleError, match=reason):
        read_samples(tmp_path / "samples.jsonl")


def test_an_episode_is_read_whole(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    row = {
        "prompt": "Which?",
        "images": ["a.png"],
        "answer": "K",
        "ground_truth": ["K"],
        "columns": {"target_tool_calls": 2},
        "choices": ["K", "L"],
        "tool_calls": [
            {"name": "zoom", "arguments": {"x": 1}, "images": ["b.png", "c.png"]},
            {"name": "zoom", "arguments": {"x": 2}, "ok": False, "error": "no such image"},
            {"name": "zoom", "arguments": {"x": 3}, "images": 1},
        ],
        "truncated": True,
    }
    (tmp_path / "samples.jsonl").write_text(json.dumps(row))
    (sample,) = read_samples(tmp_path / "samples.jsonl", right=False)
    x = sample.x
    assert [message.role for message in (*x.prompt, *x.response)] == ["user", "tool", "assistant"]
    shown = [image.path for message in (*x.prompt, *x.response) for image in message.images]
    assert shown == [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    assert [(call.ok, call.error, call.images) for call in x.tool_calls] == [
        (True, "", 2), (False, "no such image", 0), (True, "", 1),
    ]  # fmt: skip
    assert (x.ground_truth, x.columns, x.truncated) == (
        ["K"],
        {"target_tool_calls": 2, "choices": ["K", "L"]},
        True,
    )
    (scored,) = score_samples("tool_calls", [sample], {})
    assert scored["value"] == 1.0


def test_score_needs_an_answer_in_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"answer": "K", "ground_truth": "K"}\n{"id": "b", "ground_truth": "K"}\n')
    assert cli.main(["rewards", "score", "answer_accuracy", "--data", "rows.jsonl"]) == 2
    assert "rows.jsonl:2 (b): has no text under `answer`; add `answer`" in capsys.readouterr().err
    assert cli.main(["rewards", "check", "answer_accuracy", "--data", "rows.jsonl"]) == 0
    assert "1 of 2 samples have no `answer`" in capsys.readouterr().out
    Path("rows.jsonl").write_text('{"answr": "X", "ground_truth": "K"}\n')
    for verb in ("score", "check"):
        assert cli.main(["rewards", verb, "answer_accuracy", "--data", "rows.jsonl"]) == 2
        assert "did you mean answer" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "score"])
def test_help_teaches_the_form_of_a_row(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["rewards", verb, "--help"])
    shown = capsys.readouterr().out
    assert [key for key in KEYS if key not in shown] == []
    assert re.search(r'"images": 1', shown)


def test_a_misspelt_parameter_is_one_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(folder / "samples.jsonl"), "--base-dir", str(folder)]
    for verb in ("check", "score"):
        given = [*options, "--params", '{"longst": 3}']
        (folder / "samples.jsonl").write_text('{"ground_truth": "K", "answer": "K"}\n' * 3)
        assert cli.main(["rewards", verb, "mine.py:limited", *given]) == 2
        told = capsys.readouterr()
        assert "there is no 'longst'; did you mean 'longest'? (it takes: longest)" in told.err
        assert told.err.count("longst") == 1
        assert "✓" not in told.out


@pytest.mark.parametrize("name", ["always_fails", "none_applies"])
def test_nothing_is_ticked_where_no_call_gave_a_value(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(folder / "samples.jsonl"), "--base-dir", str(folder)]
    assert cli.main(["rewards", "check", f"mine.py:{name}", *options]) == 1
    shown = capsys.readouterr().out
    assert "✗" in shown
    assert "✓" not in shown
    assert "attacks on 0 samples" not in shown


def test_a_check_says_on_how_many_samples_it_was_made(folder: Path) -> None:
    report = check_reward("mine.py:some_fail", read_samples(folder / "samples.jsonl"), {}, folder)
    notes = [finding.note for finding in report.findings if finding.check.startswith("right answers")]
    assert notes == ["on 4 of 5 samples"]
    assert not report.passed


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("trl_right", set()),
        ("trl_half", {"right answers get full marks"}),
        ("trl_kind_to_silence", {"an empty answer gets the least"}),
        ("shortest", {"an empty answer gets the least"}),
        ("briefest_right", set()),
        ("numpy_group", set()),
        ("group_of_a_prompt", set()),
    ],
)
def test_group_rewards_are_checked(folder: Path, name: str, broken: set[str]) -> None:
    """The answers of a group may compete, as for the briefest; alone each right one gets full marks."""
    longer = "It is K" if name == "briefest_right" else "K"
    rows = [
        {"prompt": p, "ground_truth": g, "answer": a}
        for p, g, a in (("One?", "K", longer), ("One?", "K", "K"), ("Two?", "A", "A"), ("Three?", "X", "X"))
    ]
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = failed(folder, name)
    assert found >= broken
    assert bool(found) == bool(broken)


def test_the_last_assistant_message_is_the_answer(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "K"}]
    (tmp_path / "samples.jsonl").write_text(
        json.dumps({"messages": messages, "columns": {"level": 3}, "id": 7})
    )
    (sample,) = read_samples(tmp_path / "samples.jsonl")
    assert (sample.id, sample.x.answer, len(sample.x.prompt), sample.x.columns) == ("7", "K", 1, {"level": 3})
