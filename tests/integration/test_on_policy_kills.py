"""SIGKILL of engines, learner, reward server and driver: each prompt is learned in its own step."""

import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.loader import load_run
from posttrain.training.on_policy.prompts import stage_prompts
from tests.integration.disturbed_run import (
    GROUP_SIZE,
    HANG_S,
    STEPS,
    Attempt,
    Kill,
    learned_prompts,
    write_recipe,
)

pytestmark = pytest.mark.slow

LORA = {"lora": {"rank": 4, "alpha": 8}, "rollout": {"publish": "adapter"}}
#: Stages, and how many kills each gets with `--soak`; without it only the one of `QUIET` is killed.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "in turns": ({}, 20),
    "in turns, adapters": (LORA, 20),
    "ahead": ({"rollout": {"max_staleness": 2}}, 20),
    "ahead, adapters": (LORA | {"rollout": {"publish": "adapter", "max_staleness": 2}}, 20),
    "ahead, two engines": ({"rollout": {"max_staleness": 2, "actors": 2}}, 20),
}
QUIET = {"ahead": ["engine", "learner", "rewards", "driver"]}
KINDS = ["engine", "engines", "learner", "rewards", "driver", "stop"]
#: Attempts at a run in which parts of it are killed; the next one may end.
DISTURBED_ATTEMPTS = 3
#: Seconds that a run may take to its first step, for lack of anything to compare it with.
LONGEST_START_S = 240.0


@dataclass(frozen=True)
class Whole:
    """A run that nothing disturbs.

    Attributes:
        learned: What it learns.
        longest: The longest time without anything new.
    """

    learned: Counter[tuple[int, str]]
    longest: float


@pytest.fixture(scope="module")
def undisturbed(talker: Path, tmp_path_factory: pytest.TempPathFactory, soak: bool) -> Whole:
    """The plain loop; neither adapters nor staleness may change what is learned when.

    It is run with `--soak`; else what its steps draw is all that is known of it.
    """
    recipe = write_recipe(tmp_path_factory.mktemp("undisturbed"), talker)
    drawn = drawn_prompts(recipe, talker)
    if not soak:
        return Whole(drawn, LONGEST_START_S)
    attempt = Attempt(recipe, resume=False, patience=LONGEST_START_S)
    try:
        assert attempt.finish() == 0, attempt.output
        assert learned_prompts(recipe.parent / "run") == drawn
        return Whole(drawn, attempt.longest)
    finally:
        attempt.close()


def drawn_prompts(recipe: Path, checkpoint: Path) -> Counter[tuple[int, str]]:
    """Count the prompts of each step of a recipe, one after another and without a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_CACHE", str(recipe.parent / "cache"))
        config = load_run(recipe)
        stage: Any = config.stages[0]
        prompts = stage_prompts(
            config, stage, lambda groups: dict.fromkeys(range(len(groups)), 1), checkpoint
        )
        drawn = [
            (step, group.sample.id) for step in range(1, STEPS + 1) for group in prompts.of_step(step).groups
        ]
    return Counter(drawn * GROUP_SIZE)


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_learns_what_the_undisturbed_one_does(
    name: str, undisturbed: Whole, talker: Path, tmp_path: Path, soak: bool
) -> None:
    """A run is killed and resumed until it gets through; then the next run is."""
    settings, trials = CASES[name]
    chance = random.Random(name)
    kinds = [chance.choice(KINDS) for _ in range(trials)] if soak else list(QUIET.get(name, []))
    if not kinds:
        pytest.skip("with --soak")
    number = 0
    while kinds:
        recipe = write_recipe(tmp_path / str(number), talker, **settings)
        kinds = killed_until_it_ends(recipe, kinds, chance, undisturbed.longest + HANG_S)
        assert learned_prompts(recipe.parent / "run") == undisturbed.learned
        shutil.rmtree(recipe.parent)
        number += 1


def killed_until_it_ends(recipe: Path, kinds: list[str], chance: random.Random, patience: float) -> list[str]:
    """Run a recipe, and kill parts of it at random moments; return the kills that are left."""
    left, code, attempts = list(kinds), -1, 0
    while code:
        attempt = Attempt(recipe, resume=(recipe.parent / "run").exists(), patience=patience)
        attempts += 1
        try:
            killed: list[Kill] = []
            while left and not (killed and killed[-1].ends_the_run) and attempts <= DISTURBED_ATTEMPTS:
                kill = Kill(left[0], attempt.learned + chance.randrange(STEPS // 4), chance.random() / 2)
                if not attempt.disturb(kill):
                    break
                killed.append(kill)
                left.pop(0)
            code = attempt.finish()
            if code:
                assert killed, attempt.output
                last = killed[-1]
                assert last.ends_the_run, f"after {killed}: {attempt.output}"
                # A server that dies while it starts has not begun what could be gone on with.
                told = "--resume" in attempt.output or "server ended at once" in attempt.output
                assert told or last.kind in ("driver", "stop"), attempt.output
                assert code == last.code, attempt.output
        finally:
            attempt.close()
    return left
