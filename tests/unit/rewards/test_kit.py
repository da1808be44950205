"""`rewards new`, `check` and `score`: what an author of a reward works with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.cli import main as cli
from rewards.kit.check import check_reward
from rewards.kit.samples import SampleError, read_samples
from rewards.kit.skeleton import SkeletonError, write_skeleton

BAD_REWARDS = """
import itertools, time
from rewards import reward

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
    command = capsys.readouterr().out.rpartition("now: posttrain ")[2].split()
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


@pytest.mark.parametrize("name", ["1st", "for", "a-b", "", "../up"])
def test_names_that_are_no_functions_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SkeletonError):
        write_skeleton(name, tmp_path)
    assert not list(tmp_path.iterdir())


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
        ("", "holds no samples"),
    ],
)
def test_broken_samples_are_refused_with_file_and_line(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "samples.jsonl").write_text(row)
    with pytest.raises(SampleError, match=reason):
        read_samples(tmp_path / "samples.jsonl")


def test_the_last_assistant_message_is_the_answer(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "K"}]
    (tmp_path / "samples.jsonl").write_text(json.dumps({"messages": messages, "level": 3, "id": 7}))
    (sample,) = read_samples(tmp_path / "samples.jsonl")
    assert (sample.id, sample.x.answer, len(sample.x.prompt), sample.x.columns) == ("7", "K", 1, {"level": 3})
