"""How many GPUs a run takes, by the placement of its engines and learners, and what fits them."""

from typing import Any

import pytest

from posttrain.config import RunConfig
from posttrain.config.base import MisfitError
from posttrain.config.fitting import Misfit, memory_rows, model_load, stage_misfits
from posttrain.config.memory import card_memory, engine_least
from posttrain.config.shapes import KNOWN

RL = {"stage": "rl", "max_steps": 10, "tasks": [{"data": "a", "rewards": ["answer_accuracy"]}]}
LARGE = KNOWN["qwen3-vl-32b"]


def run_of(
    placement: str, num_workers: int = 1, actors: int = 1, spans: int = 1, **rollout: Any
) -> RunConfig:
    engines = {"actors": actors, "engine": {"tensor_parallel_size": spans}} | rollout
    sharding = "fsdp2" if num_workers > 1 else "none"
    return RunConfig.model_validate(
        {
            "name": "r",
            "model": {"name_or_path": "Qwen/Qwen3-VL-32B-Instruct"},
            "cluster": {"placement": placement},
            "stages": [RL | {"num_workers": num_workers, "sharding": sharding, "rollout": engines}],
        }
    )


@pytest.mark.parametrize(
    ("counts", "separate", "shared"),
    [((2, 2, 1), 4, 2), ((4, 4, 1), 8, 4), ((4, 1, 4), 8, 4), ((8, 2, 4), 16, 8)],
)
def test_gpus_are_counted_by_placement(counts: tuple[int, int, int], separate: int, shared: int) -> None:
    for placement, number in (("separate", separate), ("shared", shared)):
        assert run_of(placement, *counts).on(number).cluster.num_gpus == number
        with pytest.raises(MisfitError, match=f"GPUs?.* and cluster.num_gpus is {number - 1}"):
            run_of(placement, *counts).on(number - 1)


def test_shared_gpus_are_those_of_engines_that_sleep() -> None:
    with pytest.raises(ValueError, match="2 learners are not as many as the 1 GPUs of the engines"):
        run_of("shared", num_workers=2)
    with pytest.raises(ValueError, match="2 learners are not as many as the 4 GPUs of the engines"):
        run_of("shared", num_workers=2, actors=4)
    with pytest.raises(ValueError, match="cannot play the next steps' prompts meanwhile"):
        run_of("shared", max_staleness=1)


def misfits(run: RunConfig, card: float, gpus: int) -> list[Misfit]:
    run = run.on(gpus)
    [stage] = run.stages
    shared = run.cluster.placement == "shared"
    return stage_misfits(model_load(run.model, LARGE), stage, card, gpus, shared)


def test_an_engine_over_four_gpus_holds_a_quarter_of_the_weights_on_each() -> None:
    run = run_of("separate", num_workers=4, spans=4)
    model = model_load(run.model, LARGE)
    one, four = (engine_least(model, 8192, gpus) for gpus in (1, 4))
    weights, cache = 2 * LARGE.parameters, 4 * LARGE.layers * LARGE.kv_heads * LARGE.head_dim * 8192
    assert one - four == pytest.approx(0.75 * (weights + cache))
    assert any("on each of its 4 GPUs" in name for name, _ in memory_rows(run.on(8)))

    def keys(spans: int) -> set[Any]:
        return {each.key for each in misfits(run_of("separate", 4, spans=spans), card_memory(40), 12)}

    assert ("rollout", "engine") in keys(spans=1)
    assert ("rollout", "engine") not in keys(spans=4)


def test_an_engine_that_is_awake_needs_room_beside_a_learner_that_waits() -> None:
    def found(share: float) -> list[Misfit]:
        engine = {"tensor_parallel_size": 8, "gpu_memory_utilization": share}
        run = run_of("shared", 8, engine=engine)
        return [each for each in misfits(run, card_memory(141), 8) if "share their GPUs" in each.reason]

    [misfit] = found(0.85)
    assert misfit.key == ("rollout", "engine", "gpu_memory_utilization")
    assert not found(float(misfit.remedy.removeprefix("lower it to ")))
