"""Pairs out of rollouts, written as a run writes them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from posttrain.data.formats import DataError, read_canonical
from posttrain.data.preferences import preference_pairs, write
from posttrain.media.images import save_image
from posttrain.rollout.records import write_trajectories
from posttrain.run.directory import RunDir
from posttrain.types import Block, Message, RewardResult, Sample, Trajectory, text_message

TOOLS = [{"name": "image_zoom_in", "params": {}}]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "zoom")
    run.path.mkdir()
    stages = [{"name": "rl", "stage": "rl", "tasks": [{"name": "markers", "tools": TOOLS}]}]
    (run.path / "resolved.json").write_text(json.dumps({"stages": stages}))
    return run


def record(run: RunDir, step: int, *groups: list[tuple[str, float | None, str]]) -> None:
    """Write a step's rollouts: of each group the answers, rewards and stop reasons."""
    image = save_image(Image.new("RGB", (8, 8), (step, 0, 0)), run.path / "images")
    prompt = (Message("user", (Block("image", image=image), Block("text", text="Which?"))),)
    made = [
        Trajectory(
            sample_id=f"s{group}",
            task="markers",
            group=group,
            episode=episode,
            prompt=prompt,
            response=[text_message("assistant", text)],
            stop_reason=stop,
            reward=RewardResult(total=total),
        )
        for group, members in enumerate(groups)
        for episode, (text, total, stop) in enumerate(members)
    ]
    samples = {group: Sample(f"s{group}", prompt, ground_truth="K") for group in range(len(groups))}
    write_trajectories(run, f"rl/step-{step}", made, samples, stage="rl", step=step)


def answers(pairs: list[Sample]) -> list[tuple[str, str, str]]:
    return [(pair.id, pair.chosen[0].text, pair.rejected[0].text) for pair in pairs]


def test_the_best_of_a_group_against_its_worst(run):
    end = "answer"
    record(run, 10, [("mid", 0.5, end), ("best", 1.0, end), ("also best", 1.0, end), ("worst", 0.1, end)])
    record(run, 2, [("bad", 0.0, end), ("good", 0.7, end)], [("same", 0.5, end), ("again", 0.5, end)])
    found = list(preference_pairs(run.path, "rl"))
    assert answers(found) == [("rl-2-0", "good", "bad"), ("rl-10-0", "best", "worst")]
    assert found[1].columns == {"chosen_reward": 1.0, "rejected_reward": 0.1, "task": "markers"}
    assert found[1].tools == ("image_zoom_in",)
    assert found[1].ground_truth == "K"
    assert Path(found[1].messages[0].images[0].path).is_file()


def test_episodes_that_were_cut_or_not_judged_are_no_answers(run):
    record(
        run,
        1,
        [
            ("cut", 1.0, "max_tokens"),
            ("good", 0.9, "answer"),
            ("failed", None, "answer"),
            ("bad", 0.2, "answer"),
        ],
        [("alone", 1.0, "answer"), ("cut", 0.0, "max_turns")],
    )
    assert answers(list(preference_pairs(run.path, "rl"))) == [("rl-1-0", "good", "bad")]


def test_close_rewards_make_no_pair(run):
    record(run, 1, [("a", 0.5, "answer"), ("b", 0.4, "answer")], [("c", 1.0, "answer"), ("d", 0.0, "answer")])
    assert [pair.id for pair in preference_pairs(run.path, "rl", min_margin=0.2)] == ["rl-1-1"]


def test_the_pairs_are_a_dataset(run, tmp_path):
    record(run, 1, [("a", 1.0, "answer"), ("b", 0.0, "answer")])
    (tmp_path / "made").mkdir()
    write(tmp_path / "made", str(run.path))
    expected = list(preference_pairs(run.path, "rl"))
    assert list(read_canonical(tmp_path / "made" / "data.jsonl")) == expected


def test_what_gives_no_pairs_says_why(run, tmp_path):
    with pytest.raises(DataError, match=r"no rollouts of a stage 'rl'"):
        write(tmp_path, str(run.path))
    record(run, 1, [("a", 1.0, "answer")])
    with pytest.raises(DataError, match=r"no group of stage 'rl' has two finished episodes"):
        write(tmp_path, str(run.path))


@pytest.mark.parametrize("silent", ["", " \n", "\u200b", "<think>\n</think>\n"])
def test_an_episode_that_said_nothing_is_no_half_of_a_pair(run, tmp_path: Path, silent: str):
    end = "answer"
    record(run, 1, [("good", 1.0, end), (silent, 0.0, end), ("bad", 0.1, end)])
    assert answers(list(preference_pairs(run.path, "rl"))) == [("rl-1-0", "good", "bad")]
    write(tmp_path, str(run.path))
    assert len(list(read_canonical(tmp_path / "data.jsonl"))) == 1
