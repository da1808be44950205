"""Tasks: prompts with their tools and rewards, for RL and for evaluation."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from posttrain.config.base import MisfitError, Name, NaturalFloat, Positive, PositiveFloat, Section
from posttrain.config.data import DatasetName
from posttrain.config.mcp import McpServerConfig
from posttrain.config.rollout import RolloutConfig
from posttrain.reward_spec import OUTCOME, reward_list_fault


class PluginRef(Section):
    """A plugin and its parameters; its bare name does where it takes none."""

    name: str = Field(
        min_length=1, description="A declared name, file.py:attribute or package.module:attribute."
    )
    params: dict[str, object] = Field(default_factory=dict, description="Arguments of the plugin.")

    def missing_variables(self) -> list[str]:
        """Return the environment variables that it needs and that are not set here: none that is known."""
        return []

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


def _kind_of_tool(value: object) -> str:
    """Tell which of the two classes an entry of a task's tools is: one with `mcp` is a server."""
    is_server = isinstance(value, McpServerConfig) or (isinstance(value, dict) and "mcp" in value)
    return McpServerConfig.__name__ if is_server else PluginRef.__name__


#: An entry of a task's tools.
ToolEntry = Annotated[
    Annotated[PluginRef, Tag(PluginRef.__name__)] | Annotated[McpServerConfig, Tag(McpServerConfig.__name__)],
    Discriminator(_kind_of_tool),
]


class RewardRef(PluginRef):
    """A reward and its weight."""

    weight: float = Field(default=1.0, description="Factor of the reward in the episode's total.")
    only_if: dict[str, float] = Field(
        default_factory=dict,
        description="Other rewards of the list and the least value each must have for this one to count.",
    )
    unless: dict[str, float] = Field(
        default_factory=dict,
        description="Other rewards of the list and the value from which on each decides without this one: a "
        "judge with unless: {math: 1} is asked only where the rule does not find the answer right.",
    )
    audit_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the episodes on which a judge is asked although its conditions fail. It does "
        "not count there; the report shows how far it agrees with the rules.",
    )

    @model_validator(mode="after")
    def _check_audit(self) -> "RewardRef":
        if self.audit_share and not (self.only_if or self.unless):
            raise MisfitError(
                "audit_share",
                "without a condition it is asked every time",
                "set only_if or unless, or remove it",
            )
        return self


class EpisodeTask(Section):
    """How the prompts of a dataset are played: the tools that may be used, and the rewards that judge."""

    tools: list[ToolEntry] = Field(
        default_factory=list,
        description="Tools offered to the model: a name, file.py:attribute, or an MCP server, {mcp: …}.",
    )
    environment: PluginRef | None = Field(
        default=None,
        description="What answers the model's turns, such as a game; its rewards are environment.NAME.",
    )
    max_turns: Positive = Field(
        default=1,
        description="Most turns of the model in an episode; above 1 only with tools or an environment.",
    )
    rewards: list[RewardRef] = Field(min_length=1, description="What the episode's reward is the sum of.")

    @model_validator(mode="after")
    def _check(self) -> "EpisodeTask":
        if self.tools and self.max_turns < 2:
            raise MisfitError(
                "max_turns", "with one turn nothing can follow a tool's result", "set it to 2 or more"
            )
        if self.max_turns > 1 and not self.tools and self.environment is None:
            raise MisfitError("max_turns", "without tools an episode is one turn", "name tools, or remove it")
        if self.environment is None:
            for reward in self.rewards:
                if reward.name.startswith(OUTCOME):
                    reason = f"{reward.name!r} is of an environment, and the task has none"
                    raise MisfitError("rewards", reason, "name the `environment`, or remove the reward")
        tools = [tool.name for tool in self.tools]
        if repeated := next((name for name in tools if tools.count(name) > 1), None):
            raise MisfitError("tools", f"{repeated!r} is listed more than once", "list it once")
        if not self.rewards:  # where that is no error of the field
            return self
        if fault := reward_list_fault(self.rewards):
            raise MisfitError("rewards", *fault)
        if all(reward.weight == 0 for reward in self.rewards):
            raise MisfitError("rewards", "every weight is 0", "give one reward a weight")
        return self


class TaskConfig(EpisodeTask):
    """Prompts, the tools that may be used on them and the rewards that judge the answers."""

    name: Name = Field(default="", description="Name in metrics and reports; the dataset's if absent.")
    data: DatasetName
    max_new_tokens: Positive | None = Field(
        default=None,
        description="Most tokens of one turn of the model on this task, within the rollout's, which hold if "
        "absent.",
    )
    max_length: Positive | None = Field(
        default=None,
        description="Most tokens of an episode of this task, within the rollout's, which hold if absent.",
    )

    def lengths_in(self, rollout: RolloutConfig) -> tuple[int, int]:
        """Return the most tokens of a turn and of an episode of this task.

        Raises:
            MisfitError: If the task's own lengths do not fit the rollout, by the key within the task.
        """
        for key in ("max_new_tokens", "max_length"):
            own, most = getattr(self, key), getattr(rollout, key)
            if own is not None and own > most:
                raise MisfitError(
                    key,
                    f"{own} is more than rollout.{key} = {most}, within which every task stays",
                    f"lower it, or raise rollout.{key}",
                )
        turn, episode = self.max_new_tokens or rollout.max_new_tokens, self.max_length or rollout.max_length
        if turn >= episode:
            raise MisfitError(
                "max_new_tokens" if self.max_new_tokens else "max_length",
                f"one turn of {turn} tokens leaves no room for a prompt in max_length = {episode}",
                "set max_new_tokens lower, or raise max_length",
            )
        return turn, episode

    @model_validator(mode="before")
    @classmethod
    def _name_after_data(cls, value: object) -> object:
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("data"), str):
            return {**value, "name": value["data"].rpartition("/")[2].removesuffix(".yaml")}
        return value


class RlTask(TaskConfig):
    """A task that the policy learns from."""

    ratio: PositiveFloat = Field(
        default=1.0,
        le=1,
        description="Share of the task's prompts in every batch, exact where that is a whole number "
        "of prompts; the ratios sum to 1.",
    )


class DistillationTask(RlTask):
    """A task on whose episodes the policy learns from a teacher."""

    rewards: list[RewardRef] = Field(
        default_factory=list, description="Rewards that are measured; none if absent."
    )


class EvalTask(TaskConfig):
    """A task that checkpoints are measured on; its first reward is the accuracy that is reported."""

    rewards: list[RewardRef] = Field(
        default_factory=lambda: [RewardRef(name="answer_accuracy")],
        min_length=1,
        description="Rewards that are measured; the first one is the accuracy in the table.",
    )
    num_samples: Positive = Field(default=256, description="Number of prompts, from the dataset's beginning.")
    temperature: NaturalFloat = Field(default=0.0, description="Sampling temperature; 0 is greedy.")
    samples_per_prompt: Positive = Field(
        default=1,
        description="Answers to each prompt. Of several, the accuracy is their mean (mean@k), and the chance "
        "that one of k is right (pass@k) is told beside it; they need a temperature above 0.",
    )
    difficulty_column: str = Field(
        default="pass_rate",
        min_length=1,
        description="Column of the rows that says how hard a prompt is: where rows have it, accuracies are "
        "also told by its bins. pass_rate is what a curation by that filter writes.",
    )
    stages: list[Name] = Field(
        default_factory=lambda: ["all"],
        min_length=1,
        description="Stages after which this task is measured, of those in evaluation.stages, or [all].",
    )

    @model_validator(mode="after")
    def _check_samples(self) -> "EvalTask":
        if self.samples_per_prompt > 1 and not self.temperature:
            raise MisfitError(
                "samples_per_prompt",
                f"at temperature 0 all {self.samples_per_prompt} answers to a prompt are the same one",
                "set temperature: 1.0, or remove it",
            )
        return self


def check_lengths(key: str, tasks: Sequence[TaskConfig], rollout: RolloutConfig) -> None:
    """Refuse lengths of tasks that do not fit the rollout in which they are played.

    Args:
        key: Of the list of tasks.
        tasks: All that are played.
        rollout: Where.

    Raises:
        MisfitError: With the path of the first that does not.
    """
    for number, task in enumerate(tasks):
        try:
            task.lengths_in(rollout)
        except MisfitError as misfit:
            raise MisfitError(f"{key}[{number}].{misfit.key}", misfit.reason, misfit.remedy) from None


class EvaluationConfig(Section):
    """What is measured, and after which stages."""

    tasks: list[EvalTask] = Field(min_length=1, description="Tasks that checkpoints are measured on.")
    stages: list[Name] = Field(
        default_factory=lambda: ["all"],
        min_length=1,
        description="Stages whose final checkpoint is measured, or [all]; 'base' is the model given by name.",
    )
    rollout: RolloutConfig | None = Field(
        default=None, description="How answers are generated; as in the first rl stage if absent."
    )
