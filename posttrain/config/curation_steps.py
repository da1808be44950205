"""The steps of a curation: what each filter may be told."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Name, Natural, NaturalFloat, Positive, Section
from posttrain.config.document import Key
from posttrain.config.tasks import EpisodeTask, PluginRef

Share = Annotated[float, Field(ge=0, le=1)]


class FilterStep(Section):
    """What every step has."""

    name: Name = Field(default="", description="Name in the funnel; the filter's if absent.")
    domains: list[Name] = Field(
        default_factory=list,
        description="Domains or sub-categories whose rows this step looks at, the others pass; all if empty.",
    )

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """List the rewards that the step uses, each with the path of its key from the step."""
        return []

    def plugins(self) -> list[PluginRef]:
        """List everything that the step's verdicts depend on and a user may have written."""
        return [reward for _, reward in self.rewards()]

    def named_domains(self) -> list[tuple[Key, list[str]]]:
        """List what has to be in the taxonomy: domains or sub-categories, with the path of their key."""
        return [(("domains",), self.domains)]

    @model_validator(mode="before")
    @classmethod
    def _name_after_filter(cls, value: object) -> object:
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("filter"), str):
            return {**value, "name": value["filter"]}
        return value


class QueryStep(FilterStep):
    """Drops queries without content, without an answer to verify by, and repeated ones."""

    filter: Literal["query"] = Field(description="Kind of the step.")
    min_chars: Positive = Field(
        default=1,
        description="Least letters, digits and pictures (emoji) of the last user message, in any script.",
    )
    max_chars: Positive = Field(default=100_000, description="Most characters of the whole prompt.")
    drop_repeated: bool = Field(
        default=True, description="Keep only the first of equal prompts with the same images and videos."
    )
    require_ground_truth: bool = Field(
        default=False, description="Drop rows that no answer can be checked by."
    )


class QueryReviewStep(FilterStep):
    """A model keeps, minimally rewrites or drops a query, and says how complex it is."""

    filter: Literal["query_review"] = Field(description="Kind of the step.")
    endpoint: Name = Field(description="Which of `endpoints` is asked.")
    min_complexity: int = Field(default=1, ge=1, le=5, description="Least complexity, from 1 to 5.")
    min_similarity: Share = Field(
        default=0.6, description="Least likeness of a rewritten query to its original; else it is dropped."
    )


class DomainStep(FilterStep):
    """Gives each row a domain and a sub-category of the taxonomy, as columns."""

    filter: Literal["domain"] = Field(description="Kind of the step.")
    endpoint: Name | None = Field(
        default=None, description="Which of `endpoints` classifies; the taxonomy's keywords if absent."
    )
    keep: list[Name] = Field(
        default_factory=list, description="Domains or sub-categories that are kept; all if empty."
    )

    def named_domains(self) -> list[tuple[Key, list[str]]]:
        """List also what is kept."""
        return [*super().named_domains(), (("keep",), self.keep)]


class ResponseStep(FilterStep):
    """Rules on the form of a row's response: there, complete, of the wanted shape, not guessed."""

    filter: Literal["response"] = Field(description="Kind of the step.")
    thinking: Literal["any", "required", "forbidden"] = Field(
        default="any", description="Whether the response begins with <think>…</think>."
    )
    min_reasoning_chars: Natural = Field(
        default=0, description="Least characters before the final answer, so that guesses go."
    )
    max_chars: Positive | None = Field(default=None, description="Most characters of the whole response.")


class RewardStep(FilterStep):
    """A reward judges a row's response: rules such as `repetition`, models such as `judge`, or your own."""

    filter: Literal["reward"] = Field(description="Kind of the step.")
    reward: PluginRef = Field(description="Reference of the reward, with its params.")
    min: float | None = Field(default=None, description="Least value that is kept.")
    max: float | None = Field(default=None, description="Greatest value that is kept.")
    unscored: Literal["keep", "drop"] = Field(
        default="keep", description="What becomes of rows to which the reward does not apply."
    )

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """Return the one that judges."""
        return [(("reward",), self.reward)]

    @model_validator(mode="after")
    def _check(self) -> "RewardStep":
        if self.min is None and self.max is None:
            raise MisfitError("min", "without min or max nothing is dropped", "set one of them")
        _check_band(self.min, self.max)
        return self


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


class RejectionStep(AnsweringStep):
    """Rejection sampling: the row's response becomes a right answer of the model; rows without one go."""

    filter: Literal["rejection_sampling"] = Field(description="Kind of the step.")
    checks: list[AnswerCheck] = Field(
        default_factory=list, description="More that an answer must pass, such as `repetition`."
    )
    max_chars: Positive | None = Field(default=None, description="Longest answer that is taken.")
    choose: Literal["first", "shortest"] = Field(
        default="first", description="Which of several right answers becomes the response."
    )

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """List also those of the checks."""
        checks = [(("checks", number, "reward"), check.reward) for number, check in enumerate(self.checks)]
        return [*super().rewards(), *checks]


#: What a `pass_rate` step takes of each query unless it says so, where it plays episodes, and the greatest
#: share that it keeps.
EPISODES, MAX_SOLVED = 16, 0.9


class PassRateStep(SamplingStep):
    """Keeps queries of the wanted difficulty: the share of tries that are right lies in a band.

    A try is an answer that `reward` judges, or with `task` an episode, tools included, which is right if the
    task's first reward is earned in full. In the recipe of an `rl` stage a step without `endpoint` has the
    model that the stage starts from play the stage's own task.
    """

    filter: Literal["pass_rate"] = Field(description="Kind of the step.")
    endpoint: Name | None = Field(
        default=None,
        description="Which of `endpoints` answers or plays. May be absent in the recipe of an rl stage: the "
        "model that the stage starts from then plays the stage's task.",
    )
    reward: PluginRef | None = Field(
        default=None, description="Reward that an answer must earn in full to be right; not with episodes."
    )
    task: EpisodeTask | None = Field(
        default=None,
        description="Play episodes instead of asking for answers, as an rl stage does with a task of these "
        "tools, turns and rewards. `endpoint` is then a checkpoint.",
    )
    samples: Positive = Field(
        default=8, le=256, description="Answers to each query; of episodes 16 unless set."
    )
    max_new_tokens: Positive = Field(
        default=4096,
        description="Longest answer, in tokens; in an episode of one turn. Without `endpoint` unless set as "
        "in the rl stage.",
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

    @property
    def plays(self) -> bool:
        """Whether it plays episodes."""
        return self.task is not None or self.endpoint is None

    def rewards(self) -> list[tuple[Key, PluginRef]]:
        """Return the one that says which answers are right; those of episodes are the task's."""
        return [] if self.reward is None else [(("reward",), self.reward)]

    def plugins(self) -> list[PluginRef]:
        """List also the tools and rewards of the task."""
        task = self.task
        if task is None:
            return super().plugins()
        tools = [tool for tool in task.tools if isinstance(tool, PluginRef)]
        played = [*tools, *task.rewards, *filter(None, [task.environment])]
        return [*super().plugins(), *played]

    @model_validator(mode="before")
    @classmethod
    def _band_of_episodes(cls, value: object) -> object:
        """Set what is usual of episodes: those never solved teach nothing, nor do those nearly always."""
        if not isinstance(value, dict) or not (value.get("task") or value.get("endpoint") is None):
            return value
        samples = value.get("samples", EPISODES)
        once = 1 / samples if isinstance(samples, int) and samples > 0 else 0.0
        return {"samples": EPISODES, "min": once, "max": MAX_SOLVED} | value

    @model_validator(mode="after")
    def _check(self) -> "PassRateStep":
        if self.plays:
            self._check_episodes()
        elif self.reward is None:
            raise MisfitError("reward", "nothing says which answers are right", "name one, or a `task`")
        _check_band(self.min, self.max)
        if self.min == 0 and self.max == 1:
            raise MisfitError("max", "from 0 to 1 nothing is dropped", "narrow the band by min or max")
        return self

    def _check_episodes(self) -> None:
        if self.task is not None and self.endpoint is None:
            raise MisfitError(
                "endpoint",
                "who plays the task is missing; the model of an rl stage plays the stage's own task",
                "name a checkpoint of `endpoints`, or remove `task`",
            )
        if self.reward is not None:
            where = "the task's rewards" if self.task is not None else "those of the rl stage's task"
            raise MisfitError(
                "reward", f"{where} judge episodes, the first of them what is right", "remove it"
            )
        if self.long_answer_chars is not None:
            raise MisfitError("long_answer_chars", "an episode is more than its last answer", "remove it")


class ImageNeededStep(AnsweringStep):
    """Multimodal necessity: drops rows with images that the model also solves without seeing them."""

    filter: Literal["image_needed"] = Field(description="Kind of the step.")
    samples: Positive = Field(default=1, le=256, description="Answers to each query, without its images.")
    temperature: NaturalFloat = Field(default=0.0, description="Sampling temperature.")
    max_pass_rate: Share = Field(default=0.0, description="Greatest share of right answers that is kept.")


Step = Annotated[
    QueryStep
    | QueryReviewStep
    | DomainStep
    | ResponseStep
    | RewardStep
    | RejectionStep
    | PassRateStep
    | ImageNeededStep,
    Field(discriminator="filter"),
]


def _check_band(low: float | None, high: float | None) -> None:
    if low is not None and high is not None and low > high:
        raise MisfitError("min", f"{low:g} is above max, {high:g}", "exchange them")
