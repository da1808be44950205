"""On-policy distillation from a teacher in engines of its own, as a user runs it, through kills."""

from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.run.rows import METRICS, MetricsRow, read_rows
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

TOLD = ("loss", "divergence/teacher", "kl/teacher", "grad_norm", "entropy")
LONGEST_START_S = 240.0


def recipe_in(folder: Path, student: Path, teacher: Path) -> Path:
    return write_recipe(
        folder,
        student,
        stage="on_policy_distillation",
        name="rl",
        algorithm=None,
        group_size=GROUP_SIZE,
        tasks=[{"data": "markers_train"}],
        teacher={"checkpoint": str(teacher), "place": "engines", "engine": {"kv_cache_gb": 0.25}},
        loss={"beta": 0.5, "top_k": 16},
    )


def told(recipe: Path) -> list[tuple[float | None, ...]]:
    rows = read_rows(recipe.parent / "run" / METRICS, MetricsRow)
    return [tuple(row.figures[name] for name in TOLD) for row in rows]


def test_a_run_whose_teacher_and_driver_are_killed_ends_as_the_undisturbed_one(
    talker: Path, make_talker: Callable[..., Path], tmp_path: Path, soak: bool
) -> None:
    if not soak:
        pytest.skip("two runs take minutes: --soak")
    teacher = make_talker(1)
    whole, killed = (recipe_in(tmp_path / name, talker, teacher) for name in ("whole", "killed"))
    attempt = Attempt(whole, resume=False, patience=LONGEST_START_S)
    try:
        assert attempt.finish() == 0, attempt.output
    finally:
        attempt.close()
    patience = attempt.longest + HANG_S
    attempt = Attempt(killed, resume=False, patience=patience)
    try:
        assert attempt.disturb(Kill("teacher", 1, 0.1))
        assert attempt.disturb(Kill("driver", STEPS // 2, 0.1))
    finally:
        attempt.close()
    attempt = Attempt(killed, resume=True, patience=patience)
    try:
        assert attempt.finish() == 0, attempt.output
    finally:
        attempt.close()
    runs = [recipe.parent / "run" for recipe in (whole, killed)]
    assert learned_prompts(runs[1]) == learned_prompts(runs[0])
    assert told(killed) == told(whole)  # bit for bit
    assert all(row[1] for row in told(whole))
    rows = list(read_rows(runs[0] / METRICS, MetricsRow))
    assert all((row.figures["time/teacher"] or 0) > 0 for row in rows)
