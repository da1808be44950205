"""The steps of a curation in which a model tries each query: it answers, or plays the episodes of a task."""

from typing import Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, NaturalFloat, Positive, Section
from posttrain.config.document import Key
from posttrain.config.filter_step import FilterStep, Share, check_band
from posttrain.config.tasks import EpisodeTask, PluginRef


class SamplingStep(FilterStep):
    """Steps that let a model try each query several times."""

    samples: Positive = Field(default=8, le=256, description="Answers to each query.")
    temperature: NaturalFloat = Field(default=1.0, description="Sampling temperature.")
    max_new_tokens: Positive = Field(default=4096, description="Longest answer, in tokens.")

    @model_validator(mode="after")
    def _check_samples(self) -> "SamplingStep":
        if self.samples > 1 and self.temperature == 0:
            raise MisfitError(
                "samples", "at temperature 0 every answer is the same", "set samples: 1, or a temperature"
            )
        return self


class AnsweringStep(SamplingStep):
    """Steps that compare a model's answers with the ground truth."""

    endpoint: Name = Field(description="Which of `endpoints` answers.")
    reward: PluginRef = Field(description="Reward that an answer must earn in full to be right.")

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """Return the one that says which answers are right."""
        return [(("reward",), self.reward)]


class AnswerCheck(Section):
    """A reward that an answer must not fall short of."""

    reward: PluginRef = Field(description="Reference of the reward, with its params.")
    min: float = Field(description="Least value; an answer to which the reward does not apply passes.")


#: What a step takes of each query unless it says so, where it plays episodes.
EPISODES = 16


class PlayingStep(SamplingStep):
    """Steps whose model may play a task's episodes, tools included, instead of answering.

    An episode is right if the task's first reward is earned in full.
    """

    endpoint: Name | None = Field(
        default=None,
        description="Which of `endpoints` answers or plays. May be absent in the recipe of an rl stage: the "
        "model that the stage starts from then plays the stage's task.",
    )
    task: EpisodeTask | None = Field(
        default=None,
        description="Play episodes instead of asking for answers, as an rl stage does with a task of these "
        "tools, turns and rewards. `endpoint` is then a checkpoint.",
    )
    max_new_tokens: Positive = Field(
        default=4096,
        description="Longest answer, in tokens; in an episode of one turn. Without `endpoint` unless set as "
        "in the rl stage.",
    )

    @property
    def plays(self) -> bool:
        """Whether it plays episodes."""
        return self.task is not None or self.endpoint is None

    def plugins(self) -> list[PluginRef]:
        """List also the tools and rewards of the task."""
        task = self.task
        if task is None:
            return super().plugins()
        tools = [tool for tool in task.tools if isinstance(tool, PluginRef)]
        played = [*tools, *task.rewards, *filter(None, [task.environment])]
        return [*super().plugins(), *played]

    def refuse_with_episodes(self, **why: str) -> None:
        """Refuse keys that say nothing of episodes.

        Args:
            **why: By key, why; those that were not set are passed over.

        Raises:
            MisfitError: Naming the first.
        """
        if self.task is not None and self.endpoint is None:
            raise MisfitError(
                "endpoint",
                "who plays the task is missing; the model of an rl stage plays the stage's own task",
                "name a checkpoint of `endpoints`, or remove `task`",
            )
        for key, reason in why.items():
            if key in self.model_fields_set and getattr(self, key) not in (None, []):
                raise MisfitError(key, reason, "remove it")

    @property
    def _judges(self) -> str:
        """What says which episodes are right, for a message."""
        where = "the task's rewards" if self.task is not None else "those of the rl stage's task"
        return f"{where} judge episodes, the first of them what is right"


def plays_episodes(value: dict[str, object]) -> bool:
    """Tell whether the keys of a step have it play episodes."""
    return bool(value.get("task")) or value.get("endpoint") is None


class RejectionStep(PlayingStep):
    """Rejection sampling: the row's response becomes a right answer of the model; rows without one go.

    With `task` it becomes a right episode, all its turns, calls and images: a row to learn the task from.
    """

    filter: Literal["rejection_sampling"] = Field(description="Kind of the step.")
    endpoint: Name | None = Field(default=None, description="Which of `endpoints` answers or plays.")
    reward: PluginRef | None = Field(
        default=None, description="Reward that an answer must earn in full to be right; not with episodes."
    )
    checks: list[AnswerCheck] = Field(
        default_factory=list,
        description="More that an answer must pass, such as `repetition`. Of episodes, the rewards of the "
        "task that have to reach a value beside the first.",
    )
    max_chars: Positive | None = Field(default=None, description="Longest answer that is taken.")
    choose: Literal["first", "shortest"] = Field(
        default="first",
        description="Which of several right answers becomes the response; of episodes, the shortest is that "
        "of the fewest tokens.",
    )

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """List the one that says what is right, and those of the checks; those of episodes are the task's."""
        if self.reward is None:
            return []
        checks = [(("checks", number, "reward"), check.reward) for number, check in enumerate(self.checks)]
        return [(("reward",), self.reward), *checks]

    @model_validator(mode="after")
    def _check(self) -> "RejectionStep":
        if self.endpoint is None:
            raise MisfitError("endpoint", "who answers is missing", "name one of `endpoints`")
        if self.task is None:
            if self.reward is None:
                raise MisfitError("reward", "nothing says which answers are right", "name one, or a `task`")
            return self
        self.refuse_with_episodes(reward=self._judges, max_chars="an episode is more than its last answer")
        scored = [reward.name for reward in self.task.rewards]
        for number, check in enumerate(self.checks):
            if check.reward.name not in scored or check.reward.params:
                raise MisfitError(
                    f"checks[{number}].reward",
                    f"{check.reward.name!r} is checked as the task's rewards score it",
                    f"name one of {', '.join(scored)} without params",
                )
        return self


#: The greatest share of right episodes that a `pass_rate` step keeps.
MAX_SOLVED = 0.9


class PassRateStep(PlayingStep):
    """Keeps queries of the wanted difficulty: the share of tries that are right lies in a band.

    A try is an answer that `reward` judges, or with `task` an episode. In the recipe of an `rl` stage a step
    without `endpoint` has the model that the stage starts from play the stage's own task.
    """

    filter: Literal["pass_rate"] = Field(description="Kind of the step.")
    reward: PluginRef | None = Field(
        default=None, description="Reward that an answer must earn in full to be right; not with episodes."
    )
    samples: Positive = Field(
        default=8, le=256, description="Answers to each query; of episodes 16 unless set."
    )
    min: Share = Field(
        default=0.0,
        description="Least share of right tries that is kept; of episodes, unless set, one that is right.",
    )
    max: Share = Field(
        default=1.0, description="Greatest share of right tries that is kept; of episodes 0.9 unless set."
    )
    long_answer_chars: Positive | None = Field(
        default=None,
        description="Queries above `max` stay if their answers have so many characters on average.",
    )

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """Return the one that says which answers are right; those of episodes are the task's."""
        return [] if self.reward is None else [(("reward",), self.reward)]

    @model_validator(mode="before")
    @classmethod
    def _band_of_episodes(cls, value: object) -> object:
        """Set what is usual of episodes: those never solved teach nothing, nor do those nearly always."""
        if not isinstance(value, dict) or not plays_episodes(value):
            return value
        samples = value.get("samples", EPISODES)
        once = 1 / samples if isinstance(samples, int) and samples > 0 else 0.0
        return {"samples": EPISODES, "min": once, "max": MAX_SOLVED} | value

    @model_validator(mode="after")
    def _check(self) -> "PassRateStep":
        if self.plays:
            self.refuse_with_episodes(
                reward=self._judges, long_answer_chars="an episode is more than its last answer"
            )
        elif self.reward is None:
            raise MisfitError("reward", "nothing says which answers are right", "name one, or a `task`")
        check_band(self.min, self.max)
        if self.min == 0 and self.max == 1:
            raise MisfitError("max", "from 0 to 1 nothing is dropped", "narrow the band by min or max")
        return self


class CallTargetsStep(PlayingStep):
    """Estimates how many tool calls each query needs, for the reward `tool_calls`; changes nothing else.

    The target is the least number of useful calls among a model's right episodes, as the reward counts them:
    calls that show something, the same look twice as one. Without `task` a model is asked for an estimate.
    """

    filter: Literal["call_targets"] = Field(description="Kind of the step.")
    column: str = Field(
        default="target_tool_calls", min_length=1, description="Column in which the targets are written."
    )
    samples: Positive = Field(
        default=1,
        le=256,
        description="Episodes of each query, 16 unless set; or estimates, of which the median is taken.",
    )
    temperature: NaturalFloat = Field(
        default=1.0, description="Sampling temperature; of a single estimate 0 unless set."
    )
    min_solved_share: Share = Field(
        default=0.0,
        description="Least share of the episodes with so many calls that are right, for their number to be "
        "the target: above 0 a lucky guess does not count.",
    )
    tools: list[PluginRef] = Field(
        default_factory=list, description="Tools that a model that is asked is told of; not with episodes."
    )
    max_calls: Positive = Field(
        default=8, description="Greatest target that a model that is asked may name; not with episodes."
    )
    unsolved: Literal["keep", "drop"] = Field(
        default="keep",
        description="What becomes of queries that no episode solved: they get no target, so `tool_calls` "
        "does not apply to them unless it has a target of its own.",
    )

    def plugins(self) -> list[PluginRef]:
        """List also the tools that are told of."""
        return [*super().plugins(), *self.tools]

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        if plays_episodes(value):
            return {"samples": EPISODES} | value
        return ({"temperature": 0.0} if value.get("samples", 1) == 1 else {}) | value

    @model_validator(mode="after")
    def _check(self) -> "CallTargetsStep":
        if self.plays:
            told = "a model that plays has the task's tools"
            self.refuse_with_episodes(tools=told, max_calls="the task's max_turns bound the calls")
            return self
        if not self.tools:
            raise MisfitError("tools", "a model has to know the tools to tell", "name them, or a `task`")
        for key in ("min_solved_share", "unsolved"):
            if key in self.model_fields_set:
                raise MisfitError(key, "a model that is asked solves nothing", "remove it, or name a `task`")
        return self


class ImageNeededStep(AnsweringStep):
    """Multimodal necessity: drops rows with images that the model also solves without seeing them."""

    filter: Literal["image_needed"] = Field(description="Kind of the step.")
    samples: Positive = Field(default=1, le=256, description="Answers to each query, without its images.")
    temperature: NaturalFloat = Field(default=0.0, description="Sampling temperature.")
    max_pass_rate: Share = Field(default=0.0, description="Greatest share of right answers that is kept.")
