"""A run: one model, a list of stages, and what is measured between them."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from posttrain.config.base import MisfitError, Name, Natural, PositiveFloat, Section
from posttrain.config.distillation import DistillationStage
from posttrain.config.dpo import DpoStage
from posttrain.config.model import ClusterConfig, ModelConfig
from posttrain.config.rl import RlStage
from posttrain.config.rollout import RolloutConfig
from posttrain.config.sft import SftStage, TinyModelStage
from posttrain.config.tasks import EvalTask, EvaluationConfig
from posttrain.config.trainer import TrainedStage, TrainerStage

Stage = Annotated[
    TinyModelStage | SftStage | DistillationStage | DpoStage | RlStage, Field(discriminator="stage")
]

#: Names that no stage may take: folders of a run's directory, and words of `evaluation.stages`.
RESERVED_NAMES = ("all", "base", "data", "images", "rollouts")
BFLOAT16_TOLERANCE = 0.05


class RunConfig(Section):
    """A whole run; what `posttrain run` takes."""

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
    reward_client: str = Field(
        default="rewards.serving.client:RewardClient", description="Reference of the reward server's client."
    )
    reward_server: str = Field(
        default="rewards.serving.launch:start_server",
        description="Reference of what starts the reward server.",
    )

    reward_wait_s: PositiveFloat = Field(
        default=60, description="Seconds to wait for a reward server that does not answer before stopping."
    )

    @property
    def evaluation_rollout(self) -> RolloutConfig:
        """How answers are generated when checkpoints are measured."""
        if self.evaluation is not None and self.evaluation.rollout is not None:
            return self.evaluation.rollout
        return next((stage.rollout for stage in self.stages if isinstance(stage, RlStage)), RolloutConfig())

    @property
    def origins(self) -> dict[str, str]:
        """By stage, whose checkpoint it starts from: an earlier stage's, or `base`; a tiny_model has none."""
        befores = ["base", *(stage.name for stage in self.stages)]
        return {
            stage.name: stage.start_from or before
            for before, stage in zip(befores, self.stages, strict=False)
            if isinstance(stage, TrainedStage)
        }

    def tasks_after(self, stage: str) -> list[EvalTask]:
        """What the final checkpoint of a stage (or `base`) is to be measured on."""
        if self.evaluation is None or {"all", stage}.isdisjoint(self.evaluation.stages):
            return []
        return [task for task in self.evaluation.tasks if not {"all", stage}.isdisjoint(task.stages)]

    @field_validator("stages", mode="after")
    @classmethod
    def _tolerances_by_dtype(cls, stages: list[Stage], info: ValidationInfo) -> list[Stage]:
        """The engines of a bfloat16 model agree with the learner less closely than those of a float32 one."""
        model = info.data.get("model")
        if model is None or model.dtype == "float32":
            return stages
        return [
            stage.model_copy(update={"logprob_tolerance": BFLOAT16_TOLERANCE})
            if isinstance(stage, RlStage) and "logprob_tolerance" not in stage.model_fields_set
            else stage
            for stage in stages
        ]

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
            if isinstance(stage, DistillationStage) and stage.teacher.stage not in (None, *seen):
                raise MisfitError(
                    f"stages[{index}].teacher.stage",
                    f"there is no stage {stage.teacher.stage!r} before this one",
                    f"name an earlier stage ({', '.join(sorted(seen)) or 'there is none'}), or a checkpoint",
                )
            start = stage.start_from if isinstance(stage, TrainedStage) else None
            known = [*sorted(seen), *["base"] * (self.model.name_or_path is not None)]
            if start is not None and start not in known:
                raise MisfitError(
                    f"stages[{index}].start_from",
                    f"there is no {start!r} before this stage",
                    f"choose among {', '.join(known)}" if known else "remove it",
                )
            seen.add(stage.name)
            if stage.stage == "tiny_model" and index:
                raise MisfitError(
                    f"stages[{index}].stage",
                    "tiny_model makes a new model",
                    "make it the first stage, or remove it",
                )
        if not self.stages and self.evaluation is None:
            raise MisfitError("stages", "there is nothing to do", "add a stage, or an evaluation")
        builds = bool(self.stages) and self.stages[0].stage == "tiny_model"
        if builds and self.model.name_or_path:
            raise MisfitError(
                "model.name_or_path",
                f"the first stage makes the model, so {self.model.name_or_path!r} would go unused",
                "remove it, or remove the tiny_model stage",
            )
        if not builds and not self.model.name_or_path:
            raise MisfitError(
                "model.name_or_path",
                "there is no model to start from",
                "name one, such as Qwen/Qwen3-VL-8B-Instruct, or begin with `stage: tiny_model`",
            )
        return self

    @model_validator(mode="after")
    def _check_gpus(self) -> "RunConfig":
        offered = self.cluster.num_gpus
        for index, stage in enumerate(self.stages):
            if isinstance(stage, TrainerStage) and stage.sharding != "none" and not offered:
                raise MisfitError(
                    f"stages[{index}].sharding",
                    "accelerate shards models over GPUs, and cluster.num_gpus is 0",
                    "remove it, or set cluster.num_gpus",
                )
        if not offered or self.cluster.address is not None:
            return self
        for index, stage in enumerate(self.stages):
            # A teacher's engines are gone before the student trains.
            if isinstance(stage, DistillationStage) and stage.generation.actors > offered:
                raise MisfitError(
                    f"stages[{index}].generation.actors",
                    f"{stage.generation.actors} take one GPU each, and cluster.num_gpus is {offered}",
                    "lower it, or raise cluster.num_gpus",
                )
            engines = stage.rollout.actors if isinstance(stage, RlStage) else 0
            if stage.num_workers + engines > offered:
                parts = f"{stage.num_workers} num_workers" + (
                    f" + {engines} rollout.actors" if engines else ""
                )
                raise MisfitError(
                    f"stages[{index}].num_workers",
                    f"{parts} take one GPU each, and cluster.num_gpus is {offered}",
                    "lower them, or raise cluster.num_gpus",
                )
        return self

    @model_validator(mode="after")
    def _check_evaluation(self) -> "RunConfig":
        if self.evaluation is None:
            return self
        names = [stage.name for stage in self.stages] + ["base"] * (self.model.name_or_path is not None)
        lists = {"evaluation.stages": self.evaluation.stages}
        lists |= {f"evaluation.tasks[{i}].stages": t.stages for i, t in enumerate(self.evaluation.tasks)}
        for key, stages in lists.items():
            if unknown := [name for name in stages if name not in (*names, "all")]:
                raise MisfitError(
                    key, f"there is no stage {unknown[0]!r}", f"choose among {', '.join(names)}, or all"
                )
        tasks = [task.name for task in self.evaluation.tasks]
        if repeated := next((name for name in tasks if tasks.count(name) > 1), None):
            raise MisfitError(
                "evaluation.tasks", f"two tasks are named {repeated!r}", "give one of them another `name`"
            )
        return self

    @model_validator(mode="after")
    def _check_measured(self) -> "RunConfig":
        """A stage's metric is measured before it and after it; a dpo stage measures its pairs itself."""
        for index, stage in enumerate(self.stages):
            on_the_way = isinstance(stage, SftStage) and stage.eval_epochs is not None
            if on_the_way and not self.tasks_after(stage.name):
                raise MisfitError(
                    f"stages[{index}].eval_epochs",
                    "nothing is measured after this stage",
                    "add a task to `evaluation`, or remove it",
                )
            metric = stage.metric if isinstance(stage, TrainedStage) else None
            if metric is None or (isinstance(stage, DpoStage) and metric == stage.eval_dataset):
                continue
            before, after = (
                {task.name for task in self.tasks_after(name)}
                for name in (self.origins[stage.name], stage.name)
            )
            if metric not in before & after:
                both = ", ".join(sorted(before & after)) or "no task"
                raise MisfitError(
                    f"stages[{index}].metric",
                    f"{metric!r} is not measured both before and after the stage ({both} is)",
                    "name a task of `evaluation`, and both stages in its `stages`",
                )
        return self
