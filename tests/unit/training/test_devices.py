"""The quickstart's parts on a CPU machine, a GPU machine, and a GPU machine that is told to use the CPU.

`nvidia-smi` and Ray's start are faked; the run goes on to its first stage, whose parts are then looked at.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.config import RunConfig, load_run
from posttrain.config.base import MisfitError
from posttrain.run import actors, placement
from posttrain.run import cluster as clusters
from posttrain.training import engines_and_rewards, pipeline
from posttrain.training.on_policy import learner_group
from posttrain.training.run_at_work import RunAtWork
from posttrain.training.supervised import runners
from posttrain.training.supervised.trl_stage import trainer_arguments

CLUSTER_GPUS = 4
Begin = Callable[..., SimpleNamespace]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Begin a run on a faked Ray; returns what Ray was given, the run, and its processes' environment."""

    def begun(*overrides: str) -> SimpleNamespace:
        seen = SimpleNamespace(starts=[])

        def init(**settings: Any) -> None:
            seen.starts.append(settings)
            seen.offered = CLUSTER_GPUS if settings["address"] != "local" else settings["num_gpus"]

        def execute(work: RunAtWork) -> None:
            seen.work, seen.environment = work, dict(os.environ)

        monkeypatch.setattr(clusters.ray, "init", init)
        monkeypatch.setattr(clusters.ray, "shutdown", lambda: None)
        monkeypatch.setattr(clusters, "serving_home", nullcontext)
        monkeypatch.setattr(clusters.ray, "cluster_resources", lambda: {"GPU": seen.offered})
        monkeypatch.setattr(pipeline, "check_run_data", lambda *_: None)
        monkeypatch.setattr(pipeline, "check_shared_data", lambda _: None)
        monkeypatch.setattr(pipeline, "execute", execute)
        monkeypatch.setattr(pipeline, "write_report", lambda path: path)
        pipeline.run(load_run("quickstart", [f"output_dir={tmp_path}", *overrides]))
        return seen

    return begun


@pytest.mark.parametrize(
    ("gpus", "overrides", "use_gpu"),
    [
        (0, [], False),
        (4, [], True),
        (4, ["cluster.num_gpus=0"], False),
        (4, ["cluster.num_gpus=3"], True),
    ],
    ids=["a CPU machine", "a GPU machine", "told to use the CPU", "told to use three"],
)
def test_every_part_uses_the_same_devices(
    begin: Begin,
    gpu_machine: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    gpus: int,
    overrides: list[str],
    use_gpu: bool,
) -> None:
    gpu_machine(gpus)
    seen = begin(*overrides)
    work: RunAtWork = seen.work
    [start] = seen.starts
    asked = 3 if "cluster.num_gpus=3" in overrides else gpus * use_gpu
    assert start["num_gpus"] == work.config.cluster.num_gpus == asked
    assert work.use_gpu is use_gpu
    assert (work.card is not None) is use_gpu
    assert seen.environment.get("CUDA_VISIBLE_DEVICES") == (None if use_gpu else "")
    assert seen.environment.get("PYTORCH_ALLOC_CONF") == ("expandable_segments:True" if use_gpu else None)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ  # as before, once the run is over
    for stage in work.config.stages[1:]:
        assert vars(stage)["gradient_checkpointing"] is use_gpu
    sft: Any = work.config.stages[1]
    arguments = trainer_arguments(work.config, sft, tmp_path, 10)
    assert (arguments["use_cpu"], arguments["gradient_checkpointing"]) == (not use_gpu, use_gpu)
    assert workers_of(work, monkeypatch) is use_gpu
    assert gpus_of_actors(work, monkeypatch) == [(1 if use_gpu else 0, use_gpu)] * 2
    assert engines_of(work, monkeypatch) is use_gpu


def workers_of(work: RunAtWork, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether Ray Train's workers of the sft stage take GPUs."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(runners, "run_workers", lambda *_, **settings: given.update(settings))
    stage: Any = work.config.stages[1]
    work.run.scratch(stage.name).mkdir(parents=True, exist_ok=True)
    runners.SftRunner(work, stage)._run_workers(None)  # type: ignore[arg-type]
    return given["use_gpu"]


def gpus_of_actors(work: RunAtWork, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Return the GPUs that Ray reserves for each learner, and whether it is told to train there."""
    taken: list[tuple[int, bool]] = []

    class Made:
        def __init__(self, kind: object) -> None:
            self.resources: dict[str, Any] = {}

        def options(self, **resources: Any) -> "Made":
            self.resources = resources
            return self

        def remote(self, *arguments: Any) -> object:
            taken.append((self.resources["num_gpus"], arguments[-1]))
            return SimpleNamespace(__ray_call__=SimpleNamespace(remote=lambda _: None))

    monkeypatch.setattr(actors.ray, "remote", Made)
    monkeypatch.setattr(actors, "ActorHandle", object)
    monkeypatch.setattr(learner_group.Actor, "call", lambda *_: None)
    monkeypatch.setattr(learner_group.LearnerGroup, "_wait", lambda *_: [""])
    stage: Any = work.config.stages[-1]
    learner_group.LearnerGroup(work.config.model, stage, Path(), resume=False, use_gpu=work.use_gpu)
    return taken


def engines_of(work: RunAtWork, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether engines take GPUs."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(engines_and_rewards, "RolloutPool", lambda *_, **settings: given.update(settings))
    monkeypatch.setattr(engines_and_rewards.EnginesAndRewards, "_start_rewards", lambda _: None)
    services = engines_and_rewards.EnginesAndRewards(work.config, work.run, work.plugins)
    node = placement.Node("0", "127.0.0.1", 2, work.config.cluster.num_gpus or 0)
    monkeypatch.setattr(placement, "nodes", lambda: [node])
    services._start_pool(Path("Qwen3-VL"), work.config.evaluation_rollout, "")
    assert [place.gpus for place in given["places"]] == [int(work.use_gpu)]
    return given["use_gpu"]


@pytest.mark.parametrize(
    ("offered", "overrides", "gpus"),
    [(4, [], 4), (4, ["cluster.num_gpus=0"], 0), (4, ["cluster.num_gpus=3"], 3), (0, [], 0)],
)
def test_a_joined_cluster_says_how_many_gpus_there_are(
    begin: Begin,
    gpu_machine: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    offered: int,
    overrides: list[str],
    gpus: int,
) -> None:
    """The driver may stand on a machine without GPUs; where none is used, workers are told to see none."""
    gpu_machine(0)
    monkeypatch.setitem(globals(), "CLUSTER_GPUS", offered)
    seen = begin("cluster.address=there:6379", *overrides)
    assert seen.work.config.cluster.num_gpus == gpus
    told = seen.starts[-1]["runtime_env"]["env_vars"]
    assert told.get("CUDA_VISIBLE_DEVICES") == (None if gpus else "")
    assert seen.environment.get("CUDA_VISIBLE_DEVICES") == (None if gpus else "")


def test_a_cluster_with_fewer_gpus_than_asked_for_is_refused(
    begin: Begin, gpu_machine: Callable[[int], None]
) -> None:
    gpu_machine(0)
    with pytest.raises(clusters.ClusterError, match="num_gpus is 5, and the cluster has 4"):
        begin("cluster.address=there:6379", "cluster.num_gpus=5")


def test_too_few_gpus_are_told_when_their_number_is_known(
    begin: Begin, gpu_machine: Callable[[int], None]
) -> None:
    gpu_machine(2)
    with pytest.raises(MisfitError, match=r"2 num_workers \+ 1 rollout.actors take one GPU each.*is 2"):
        begin()


def test_a_stage_that_cannot_fit_the_card_is_refused_before_it_starts(
    begin: Begin, gpu_machine: Callable[[int], None], tiny_checkpoint: Path
) -> None:
    gpu_machine(4)
    seen = begin()
    work, stage = seen.work, seen.work.config.stages[1]
    work.checkpoints["tiny_model"] = tiny_checkpoint
    pipeline.check_memory(work, stage)  # the tiny model fits
    work.card = 2 * 2**30
    pipeline.check_memory(work, stage)
    work.card = 1.51 * 2**30  # what CUDA itself takes, and 10 MiB
    with pytest.raises(pipeline.DoesNotFit, match=r"sft: a learner takes .* at the most"):
        pipeline.check_memory(work, stage)


def test_an_unsettled_run_uses_the_cpu() -> None:
    run = RunConfig.model_validate({"name": "r", "model": {}, "stages": [{"stage": "tiny_model"}]})
    assert run.cluster.num_gpus is None
    assert not run.use_gpu
    assert run.on(2).use_gpu
