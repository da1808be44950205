"""A run: one model, a list of stages, and what is measured between them."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Natural, PositiveFloat, Section
from posttrain.config.distillation import DistillationStage
from posttrain.config.dpo import DpoStage
from posttrain.config.judge_budget import JudgeBudgetConfig
from posttrain.config.learning import LearningStage
from posttrain.config.model import ClusterConfig, ModelConfig, infer_family
from posttrain.config.on_policy_distillation import OnPolicyDistillationStage
from posttrain.config.rl import RlStage
from posttrain.config.rollout import RolloutConfig
from posttrain.config.sft import SftStage
from posttrain.config.stage import Content, DatasetUse, Surroundings, TaskUse, too_few_gpus
from posttrain.config.tasks import EvalTask, EvaluationConfig, TaskConfig, check_lengths
from posttrain.config.tiny_model import TinyModelStage

Stage = Annotated[
    TinyModelStage | SftStage | DistillationStage | DpoStage | RlStage | OnPolicyDistillationStage,
    Field(discriminator="stage"),
]

#: Names that no stage may take: folders of a run's directory, and words of `evaluation.stages`.
RESERVED_NAMES = ("all", "base", "data", "images", "rollouts")


class RunConfig(Section):
    """A whole run: the contents of the file that `posttrain run` is given."""

    name: Name = Field(description="Name of the run; its directory is <output_dir>/<name>.")
    output_dir: str = Field(default="runs", min_length=1, description="Folder that holds the runs.")
    base_dir: str = Field(
        default=".",
        description="Folder against which datasets and plugin files are resolved: the YAML file's if absent.",
    )
    seed: Natural = Field(default=0, description="Seed of everything random in the run.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="The model that the run starts from.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Where the run runs.")
    stages: list[Stage] = Field(
        description="What is done, in order; each starts from the checkpoint of the one before unless its "
        "start_from says otherwise. May be empty where the model is only evaluated."
    )
    evaluation: EvaluationConfig | None = Field(
        default=None, description="What is measured after the stages; nothing if absent."
    )
    trackers: list[Literal["console", "tensorboard", "wandb", "trackio"]] = Field(
        default_factory=lambda: ["console"], description="Where metrics go besides metrics.jsonl."
    )
    reward_wait_s: PositiveFloat = Field(
        default=60, description="Seconds to wait for a reward server that does not answer before stopping."
    )

    judge_budget: JudgeBudgetConfig | None = Field(
        default=None, description="What the judges of the run may cost; no limit if absent."
    )

    @property
    def use_gpu(self) -> bool:
        """Whether workers, learners and engines take GPUs, each one of its own."""
        return bool(self.cluster.num_gpus)

    def on(self, gpus: int) -> "RunConfig":
        """Return the run as it is where it can use so many GPUs, with everything set that depends on it.

        Raises:
            MisfitError: If it needs more.
        """
        settled = self.model_copy(
            update={
                "cluster": self.cluster.model_copy(update={"num_gpus": gpus}),
                "stages": [stage.on(gpus > 0) for stage in self.stages],
            }
        )
        return settled._check_in_run()

    @property
    def evaluation_rollout(self) -> RolloutConfig:
        """How answers are generated when checkpoints are measured."""
        if self.evaluation is not None and self.evaluation.rollout is not None:
            return self.evaluation.rollout
        played = (stage.episodes for stage in self.stages)
        return next((rollout for rollout in played if rollout is not None), RolloutConfig())

    def seed_of(self, stage: LearningStage) -> int:
        """Return the seed of what is random in a stage: its own, or the run's."""
        return self.seed if stage.seed is None else stage.seed

    @property
    def origins(self) -> dict[str, str]:
        """The stage that each stage starts from, or `base`; a stage that makes a new model is not in it."""
        befores = ["base", *(stage.name for stage in self.stages)]
        starts = ((stage, stage.origin(before)) for before, stage in zip(befores, self.stages, strict=False))
        return {stage.name: start for stage, start in starts if start is not None}

    def measuring_rollout(self, stage: str) -> RolloutConfig:
        """Return what a stage's final checkpoint is measured with: `evaluation_rollout` in all that counts.

        Where the stage's own engines are like that they stay, since to start others takes half a minute.
        """
        usual = self.evaluation_rollout
        own = next((each.episodes for each in self.stages if each.name == stage), None)
        if own is None or any(getattr(own, key) != getattr(usual, key) for key in RolloutConfig.model_fields):
            return usual
        return own

    def tasks(self) -> Iterator[TaskUse]:
        """Yield every task, of stages and of the evaluation, with its path in the run."""
        for index, stage in enumerate(self.stages):
            for use in stage.tasks_played():
                yield dataclasses.replace(use, key=("stages", index, *use.key))
        if self.evaluation is not None:
            for number, task in enumerate(self.evaluation.tasks):
                yield TaskUse(("evaluation", "tasks", number), task)

    def datasets(self) -> Iterator[DatasetUse]:
        """Yield every dataset, of stages, tasks and evaluation, with its path in the run."""
        name = self.model.name_or_path
        sees_none = (self.model.family or (name and infer_family(name))) == "text"
        blind: dict[Content, str] = dict.fromkeys(("images", "videos"), "a text model sees none")
        unseen = blind if sees_none else {}
        for index, stage in enumerate(self.stages):
            for use in stage.datasets():
                yield dataclasses.replace(
                    use, key=("stages", index, *use.key), refused={**unseen, **use.refused}
                )
        for task in self.tasks():
            yield DatasetUse((*task.key, "data"), task.task.data, "episodes", {**unseen, **task.refused})

    def tasks_after(self, stage: str) -> list[EvalTask]:
        """Return the tasks on which the final checkpoint of a stage (or `base`) is measured."""
        if self.evaluation is None or {"all", stage}.isdisjoint(self.evaluation.stages):
            return []
        return [task for task in self.evaluation.tasks if not {"all", stage}.isdisjoint(task.stages)]

    @model_validator(mode="after")
    def _check_stages(self) -> "RunConfig":
        seen: set[str] = set()
        for index, stage in enumerate(self.stages):
            if stage.name in seen or stage.name in RESERVED_NAMES:
                taken = "taken by another stage" if stage.name in seen else "reserved"
                raise MisfitError(
                    f"stages[{index}].name",
                    f"the name {stage.name!r} is {taken}",
                    "give the stage another `name`",
                )
            seen.add(stage.name)
            if stage.makes_model and index:
                raise MisfitError(
                    f"stages[{index}].stage",
                    f"{stage.kind} makes a new model",
                    "make it the first stage, or remove it",
                )
        if not self.stages and self.evaluation is None:
            raise MisfitError("stages", "there is nothing to do", "add a stage, or an evaluation")
        builds = bool(self.stages) and self.stages[0].makes_model
        if builds and self.model.name_or_path:
            raise MisfitError(
                "model.name_or_path",
                f"the first stage makes the model, so {self.model.name_or_path!r} would go unused",
                f"remove it, or remove the {self.stages[0].kind} stage",
            )
        if not builds and not self.model.name_or_path:
            raise MisfitError(
                "model.name_or_path",
                "there is no model to start from",
                "name one, such as Qwen/Qwen3-VL-8B-Instruct, or begin with `stage: tiny_model`",
            )
        return self

    @model_validator(mode="after")
    def _check_evaluation(self) -> "RunConfig":
        if self.evaluation is None:
            return self
        check_lengths("evaluation.tasks", self.evaluation.tasks, self.evaluation_rollout)
        names = [stage.name for stage in self.stages] + ["base"] * (self.model.name_or_path is not None)
        lists = {"evaluation.stages": self.evaluation.stages}
        lists |= {f"evaluation.tasks[{i}].stages": t.stages for i, t in enumerate(self.evaluation.tasks)}
        for key, stages in lists.items():
            if unknown := [name for name in stages if name not in (*names, "all")]:
                raise MisfitError(
                    key, f"there is no stage {unknown[0]!r}", f"choose among {', '.join(names)}, or all"
                )
        return self

    @model_validator(mode="after")
    def _check_tasks(self) -> "RunConfig":
        """Refuse two tasks of one name: episodes and metrics are told apart by it, through the whole run.

        The cells of a comparison have the same tasks.
        """
        seen: dict[str, tuple[TaskConfig, str]] = {}
        for use in self.tasks():
            stage = self.stages[use.key[1]] if isinstance(use.key[1], int) else None
            cell = stage.cell if isinstance(stage, LearningStage) else None
            comparison = "" if cell is None else cell.comparison
            other, shared = seen.get(use.task.name, (None, ""))
            if other is not None and not (comparison and (other, shared) == (use.task, comparison)):
                key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in use.key)
                raise MisfitError(
                    key.removeprefix("."),
                    f"another task is named {use.task.name!r} too",
                    "give one of them a `name` of its own; by default it is the dataset's",
                )
            seen[use.task.name] = use.task, comparison
        return self

    @model_validator(mode="after")
    def _check_surroundings(self) -> "RunConfig":
        return self._check_in_run()

    def _check_in_run(self) -> "RunConfig":
        """Check what only the whole run can tell, and the GPUs if their number is known."""
        rollout, offered = self.evaluation_rollout, self.cluster.num_gpus
        each = rollout.engine.tensor_parallel_size
        if self.evaluation is not None and offered and rollout.actors * each > offered:
            raise MisfitError("evaluation.rollout.actors", *too_few_gpus(f"{rollout.actors}", offered, each))
        for index, stage in enumerate(self.stages):
            try:
                stage.check_in_run(self._surroundings(index))
            except MisfitError as misfit:
                raise MisfitError(f"stages[{index}].{misfit.key}", misfit.reason, misfit.remedy) from None
        return self

    def _surroundings(self, index: int) -> Surroundings:
        stage = self.stages[index]
        return Surroundings(
            earlier=tuple(each.name for each in self.stages[:index]),
            has_base=self.model.name_or_path is not None,
            dtype=self.model.dtype,
            cpus=self.cluster.num_cpus if self.cluster.address is None else None,
            gpus=self.cluster.num_gpus,
            shared=self.cluster.placement == "shared",
            measured_before=self._measured(self.origins.get(stage.name, "")),
            measured_after=self._measured(stage.name),
        )

    def _measured(self, stage: str) -> frozenset[str]:
        return frozenset(task.name for task in self.tasks_after(stage))
