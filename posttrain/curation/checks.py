"""What can be known to be wrong with a curation recipe before any row is read or any model is asked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config.curation import CurationConfig
from posttrain.config.curation_steps import RewardStep
from posttrain.config.document import Key, key_text
from posttrain.config.endpoints import CheckpointConfig, EarlierModelConfig, EndpointConfig
from posttrain.config.sampling_steps import CallTargetsStep, PlayingStep
from posttrain.config.tasks import EpisodeTask, PluginRef
from posttrain.curation.outcomes import CurationError
from posttrain.curation.taxonomy import Taxonomy
from posttrain.endpoint_variables import Variables
from posttrain.joints import Plugins, Reward
from posttrain.plugins import PluginError
from posttrain.reward_spec import OUTCOME

#: Where a model is asked that has no `base_url`, and the key for it.
VARIABLES = Variables("POSTTRAIN_ENDPOINT_URL", "POSTTRAIN_ENDPOINT_API_KEY")


@dataclass(frozen=True)
class Fault:
    """Something wrong with a recipe.

    Attributes:
        key: Path of the key at fault.
        reason: What is wrong, and what to do.
    """

    key: Key
    reason: str

    @property
    def text(self) -> str:
        """Key and reason in one."""
        return f"{key_text(self.key)}: {self.reason}"


def check_recipe(config: CurationConfig, taxonomy: Taxonomy, plugins: Plugins) -> None:
    """Refuse a recipe with a fault.

    Raises:
        CurationError: Naming the key of the first fault.
    """
    for index, step in enumerate(config.steps):
        if isinstance(step, PlayingStep) and step.endpoint is None:
            raise CurationError(
                f"steps[{index}].endpoint: without one the model and the task of an rl stage are meant, and"
                " there is none here; name a checkpoint of `endpoints`, and the `task` that it plays"
            )
    for name, entry in config.endpoints.items():
        if isinstance(entry, EarlierModelConfig):
            raise CurationError(
                f"endpoints.{name}.stage: there is no run here that has a stage {entry.stage!r}; name a"
                " `checkpoint`, or curate in an sft or rl stage (`curation: RECIPE`)"
            )
    for fault in recipe_faults(config, taxonomy, plugins):
        raise CurationError(fault.text)


def recipe_faults(config: CurationConfig, taxonomy: Taxonomy, plugins: Plugins) -> Iterator[Fault]:
    """Look for domains, rewards, params and models that are not there.

    Yields:
        Every fault; addresses of endpoints are another matter (see `missing_address`).
    """
    base_dir = Path(config.base_dir)
    for index, step in enumerate(config.steps):
        place: Key = ("steps", index)
        for key, names in step.named_domains():
            if reason := taxonomy.unknown(names):
                yield Fault((*place, *key), reason)
        for key, ref in step.rewards():
            try:
                judge = load_judges([ref], plugins, base_dir)[ref.name]
            except ValueError as error:  # PluginError, and a reward's refusal of its params
                yield Fault((*place, *key), str(error))
                continue
            if isinstance(step, RewardStep) and (reason := _idle_band(step, judge)):
                yield Fault((*place, "min" if step.min is not None else "max"), reason)
        if isinstance(step, PlayingStep) and step.task is not None:
            yield from _task_faults(step.task, (*place, "task"), plugins, base_dir)
        if isinstance(step, CallTargetsStep):
            yield from _tool_faults(step.tools, place, plugins, base_dir)
    for name, entry in config.endpoints.items():
        try:
            if isinstance(entry, CheckpointConfig):
                _ = entry.as_model
        except ValueError as error:
            yield Fault(("endpoints", name), str(error))


def _task_faults(task: EpisodeTask, place: Key, plugins: Plugins, base_dir: Path) -> Iterator[Fault]:
    """Look for tools and rewards that are not there, or do not take their params."""
    tools = [tool for tool in task.tools if isinstance(tool, PluginRef)]
    yield from _tool_faults(tools, place, plugins, base_dir)
    for index, ref in enumerate(task.rewards):
        if ref.name.startswith(OUTCOME):
            continue
        try:
            plugins.load_reward(ref.name, base_dir).check(ref.params)
        except ValueError as error:
            yield Fault((*place, "rewards", index), str(error))


def _tool_faults(tools: Sequence[PluginRef], place: Key, plugins: Plugins, base_dir: Path) -> Iterator[Fault]:
    for index, tool in enumerate(tools):
        try:
            plugins.load_tools([tool.model_dump()], base_dir)
        except ValueError as error:
            yield Fault((*place, "tools", index), str(error))


def load_judges(rewards: Sequence[PluginRef], plugins: Plugins, base_dir: Path) -> Mapping[str, Reward]:
    """Load the rewards that a curation's step names, by reference.

    Raises:
        PluginError: If a reference does not lead to a reward, or to one that judges only groups.
        ValueError: If a reward does not take its params.
    """
    loaded = {ref.name: plugins.load_reward(ref.name, base_dir) for ref in rewards}
    for ref in rewards:
        if loaded[ref.name].group:
            raise PluginError(f"reward {ref.name!r} judges groups of answers, a filter judges one")
        loaded[ref.name].check(ref.params)
    return loaded


def missing_address(config: EndpointConfig) -> str:
    """Return why an endpoint cannot be asked from here: it has no address; "" if it has one."""
    if VARIABLES.address(config.base_url):
        return ""
    return f"there is no address; set its base_url, or {VARIABLES.url}"


def withheld_key(config: EndpointConfig) -> str:
    """Return why no key goes to an address that may want one; "" if one goes, or it is no https address."""
    address = VARIABLES.address(config.base_url)
    if not address.startswith("https://") or VARIABLES.api_key(address):
        return ""
    return f"no key is sent to {address}: set {VARIABLES.key}, and beside it {VARIABLES.url} to this address"


def _idle_band(step: RewardStep, judge: Reward) -> str:
    """Return why no value of a reward lies in a step's band; "" if some may."""
    if step.min is not None and step.min > judge.high:
        return f"{step.min:g} is more than {step.reward.name} ever gives ({judge.high:g}): all rows would go"
    if step.max is not None and step.max < judge.low:
        return f"{step.max:g} is less than {step.reward.name} ever gives ({judge.low:g}): all rows would go"
    return ""
