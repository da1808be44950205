"""Dynamic sampling: what is replaced, by which prompts, and that nothing of it depends on when."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.config import RlStage
from posttrain.data.mixing import Mixture
from posttrain.inference.engine import stable_seed
from posttrain.run.directory import RunDir
from posttrain.run.process import STOP
from posttrain.training.on_policy.prompts import StepPrompts
from posttrain.types import Sample, text_message
from tests.unit.training.on_policy.team import STEPS, Team, folder, own_prompts, run, stage_of

__all__ = ["folder"]


def test_a_refilled_step_learns_where_there_is_signal_and_counts_the_rest(folder: RunDir) -> None:
    """In step 2 the first place is hopeless for ever, the second solved once; in step 3 a reward fails."""

    def reward(sample: str, episode: int) -> float | None:
        if sample == "3.2":
            return None
        return 0.25 if sample in ("2.0", "8.0", "14.0", "2.1") else float(episode)

    team = Team(reward=reward)
    log = run(team, folder, rounds=2)
    # A replacement is of the draw one stage of six steps later, then two stages, …
    expected = own_prompts()
    expected[1] = ["14.0", "2.2", "2.3", "8.1"]
    expected[2] = ["3.0", "3.1", "3.3", "9.2"]
    assert team.learned == expected
    names = ("refill/rounds", "refill/groups", "refill/episodes", "reward/errors", "advantage/zero_groups")
    assert [tuple(row[name] for name in names) for row in log.rows[:4]] == [
        (0, 0, 0, 0, 0),
        (2, 3, 6, 0, 1),
        (1, 1, 2, 2, 0),
        (0, 0, 0, 0, 0),
    ]
    # What is said of the policy is said of the prompts as they came, not of those that were chosen.
    assert [row["reward/mean"] for row in log.rows[:3]] == [0.5, 0.375, 0.5]


def test_a_refilled_run_that_is_resumed_learns_the_same(tmp_path: Path) -> None:
    """From any step on, also ahead of the learner, and where an engine's step has to be repeated."""

    def reward(sample: str, episode: int) -> float:
        return float(episode) if stable_seed(sample) % 3 else 0.0

    whole = Team(reward=reward)
    run(whole, RunDir(tmp_path / "whole"), rounds=3)
    assert any(sample.split(".")[0] not in "123456" for step in whole.learned for sample in step)
    for staleness, done, faults in ((0, 3, 0), (2, 0, 0), (2, 4, 0), (0, 2, 1), (2, 1, 1)):
        team = Team(reward=reward, faults=faults)
        run(team, RunDir(tmp_path / f"{staleness}{done}"), staleness, done=done, rounds=3)
        assert team.learned == whole.learned[done:]


def test_the_rounds_of_later_steps_do_not_wait_for_their_turn(folder: RunDir) -> None:
    """While the first step's slow prompt plays, the second step's refill is begun."""
    team = Team(
        lambda sample: 1.0 if sample == "1.0" else 0.0,
        reward=lambda sample, episode: 0.0 if sample == "2.0" else float(episode),
    )
    run(team, folder, staleness=1, rounds=1)
    assert team.events.index("play 8.0") < team.events.index("learn 1.0")


def test_a_run_that_is_asked_to_stop_stops_between_rounds(folder: RunDir) -> None:
    def reward(sample: str, episode: int) -> float:
        (folder.path / STOP).touch()
        return 0.0

    team = Team(reward=reward)
    run(team, folder, rounds=5)
    assert not team.learned


def test_a_task_that_has_no_more_rows_keeps_what_it_has() -> None:
    """Four places, five rows: one place can be refilled, once."""
    stage = stage_of(rounds=9)
    dataset: Any = [Sample(str(row), (text_message("user", "?"),)) for row in range(5)]
    prompts = StepPrompts(Mixture({"rows": dataset}, {"rows": 1.0}, 0), stage, 0, Team().prompt_tokens)
    drawn = prompts.of_step(1)
    before = {group.sample.id for group in drawn.groups}
    (new,) = prompts.refill(drawn, [1, 2], 1)
    assert {new.sample.id} == {"0", "1", "2", "3", "4"} - before
    assert drawn.groups[new.group] is new
    assert prompts.refill(drawn, [0, 1, 2, 3], 2) == []


@pytest.mark.parametrize("hopeless", [0.1, 0.6])
def test_refilling_keeps_the_shares_of_tasks(hopeless: float) -> None:
    """Whatever has no signal, every step has each task in its share and no row twice; seeds differ."""
    messages, shares = (text_message("user", "?"),), {"a": 0.25, "b": 0.75}
    tasks = [{"data": name, "ratio": ratio, "rewards": ["answer_accuracy"]} for name, ratio in shares.items()]
    stage = RlStage.model_validate(stage_of(rounds=4).model_dump(exclude_unset=True) | {"tasks": tasks})
    data: Any = {name: [Sample(f"{name}{row}", messages) for row in range(40)] for name in shares}
    prompts = StepPrompts(Mixture(data, shares, 3), stage, 0, Team().prompt_tokens)
    for step in range(1, STEPS + 1):
        drawn, seeds, shown = prompts.of_step(step), set(), []
        order = [group.task for group in drawn.groups]
        assert order.count("a") == 1
        new = drawn.groups
        for turn in range(1, 5):
            seeds |= {group.seed for group in new}
            shown += [group.sample.id for group in new]
            names = {group.group: group.sample.id for group in drawn.groups}
            places = [place for place, name in names.items() if stable_seed(name) % 100 < 100 * hopeless]
            new = prompts.refill(drawn, places, turn)
            assert [group.task for group in drawn.groups] == order
        assert len(shown) == len(set(shown)) == len(seeds)
