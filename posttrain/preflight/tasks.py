"""The tasks of a run: do tools and rewards load, and do gold answers earn full marks?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config import RlTask
from posttrain.config.document import Key, key_text
from posttrain.config.stage import TaskUse
from posttrain.joints import Reward, Tool
from posttrain.media.images import ImageError
from posttrain.preflight.datasets import Dataset
from posttrain.preflight.findings import Examination
from posttrain.types import RewardInput, Sample, Score, text_message

#: Share of a reward's range that full marks may lack: what a short answer costs where length counts.
NEARLY = 0.01


class UnusableRow(ValueError):
    """A row is at fault, and not the rewards that were tried on it."""


@dataclass(frozen=True)
class LoadedReward:
    """A reward of a task with its parameters."""

    name: str
    reward: Reward
    params: Mapping[str, object]

    def right_answers(self, ground_truth: object) -> Sequence[str] | None:
        """Write right answers as the reward's author says that models do, else the ground truth itself.

        None where the author cannot say for this ground truth.

        Raises:
            Exception: Whatever the author's function raises on a ground truth that it cannot read.
        """
        if self.reward.written is not None and ground_truth is not None:
            return self.reward.written(ground_truth)
        return [str(_first(ground_truth))]

    def score(self, sample: Sample, ground_truth: object, answer: str) -> Score | None:
        """Score an answer to a sample's prompt.

        A single id stands for its tokens, for how long it is is not what is tried.
        """
        asked = RewardInput(
            prompt=sample.messages,
            response=(text_message("assistant", answer),),
            answer=answer,
            ground_truth=ground_truth,
            columns=sample.columns,
            completion_ids=(0,) * bool(answer),
        )
        return self.reward(asked, **self.params)


def load_tools(look: Examination, use: TaskUse) -> None:
    """Load a task's tools and its environment, each with its params."""
    found: list[tuple[Key, Sequence[Tool]]] = []
    for index, tool in enumerate(use.task.tools):
        key = (*use.key, "tools", index)
        if missing := tool.missing_variables():
            reason = f"{tool.name} was not started here: the environment variable {missing[0]} is not set"
            look.missing(key, reason, f"set it: export {missing[0]}=…")
            continue
        loaded = look.attempt(key, look.plugins.load_tools, [tool.model_dump()], look.base_dir)
        found.append((key, loaded or ()))
    if use.task.environment is not None:
        key = (*use.key, "environment")
        game = look.attempt(key, look.plugins.load_game, use.task.environment.model_dump(), look.base_dir)
        found.append((key, game.tools if game is not None else ()))
    names: set[str] = set()
    for key, tools in found:
        for name in (tool.spec.name for tool in tools):
            if name in names:
                remedy = "rename or remove one; an MCP server's can have a prefix"
                look.problem(key, f"two tools call themselves {name!r}", remedy)
            names.add(name)


def load_rewards(look: Examination, use: TaskUse) -> list[LoadedReward]:
    """Load a task's rewards; return those that can be tried here.

    Not to be tried are those that ask a service or compare episodes.
    """
    loaded: dict[str, Reward] = {}
    for index, ref in enumerate(use.task.rewards):
        key = (*use.key, "rewards", index)
        reward = look.attempt(key, look.plugins.load_reward, ref.name, look.base_dir)
        if reward is not None:
            loaded[ref.name] = reward
            look.attempt(key, reward.check, ref.params)
    for index, ref in enumerate(use.task.rewards):
        for gate, least in ref.only_if.items():
            if gate in loaded and least > loaded[gate].high:
                reason = f"{gate} never gives {least:g}, but {loaded[gate].high:g} at most"
                look.problem((*use.key, "rewards", index, "only_if"), reason, "lower it")
        for gate, least in ref.unless.items():
            if gate in loaded and least > loaded[gate].high:
                reason = f"{gate} never gives {least:g}, but {loaded[gate].high:g} at most"
                look.problem((*use.key, "rewards", index, "unless"), reason, "lower it")
        if ref.audit_share and ref.name in loaded:
            if not loaded[ref.name].is_async:
                reason = f"{ref.name} asks no service, so it is computed for every episode anyway"
                look.problem((*use.key, "rewards", index, "audit_share"), reason, "remove it")
            elif loaded[ref.name].group:
                reason = (
                    f"{ref.name} compares episodes, and more of them would change what it says of the others"
                )
                look.problem((*use.key, "rewards", index, "audit_share"), reason, "remove it")
    if isinstance(use.task, RlTask):
        advise_conditions(look, use, loaded)
    return [
        LoadedReward(ref.name, loaded[ref.name], ref.params)
        for ref in use.task.rewards
        if ref.name in loaded and not (loaded[ref.name].is_async or loaded[ref.name].group)
    ]


def advise_conditions(look: Examination, use: TaskUse, loaded: Mapping[str, Reward]) -> None:
    """Note which bonuses of a task also count where its outcome, the first reward, is not reached."""
    outcome = use.task.rewards[0].name if use.task.rewards else ""
    if outcome not in loaded:
        return
    bonuses = [
        ref.name
        for ref in use.task.rewards[1:]
        if ref.name in loaded
        and ref.weight * loaded[ref.name].high > 0
        and outcome not in {*ref.only_if, *ref.unless}
    ]
    if bonuses:
        look.note(
            f"{key_text(use.key)}: {', '.join(bonuses)} also count where {outcome} is not reached, and teach"
            f" what does not solve the task → add only_if: {{{outcome}: {loaded[outcome].high:g}}}"
        )


def examine_golds(look: Examination, dataset: Dataset, key: Key, rewards: Sequence[LoadedReward]) -> None:
    """Try a task's rewards on the gold answers of the first rows, where the data are on disk."""
    samples = list(dataset.first_samples())
    try:
        if samples and all(sample.ground_truth in (None, []) for sample in samples):
            _check_without_golds(dataset, samples[0], rewards)
        else:
            _check_golds(dataset, rewards)
    except UnusableRow as error:
        look.problem((*key, "data"), str(error), "mend or remove the row")
    except ValueError as error:
        look.problem((*key, "rewards"), str(error))


def _check_without_golds(dataset: Dataset, sample: Sample, rewards: Sequence[LoadedReward]) -> None:
    """Refuse rows without a ground truth where every reward of the task needs one.

    Needs one that judges an answer if there is one, and does not apply or fails if there is none.

    Raises:
        ValueError: If none of the rewards can judge such rows.
    """
    if all(_applies(each, sample, "1") and not _applies(each, sample, None) for each in rewards):
        raise ValueError(
            f"{dataset.path}: row {sample.id!r} and those after it have no ground_truth, without which no "
            "reward of the task applies, so every episode would be left out"
        )


def _applies(loaded: LoadedReward, sample: Sample, ground_truth: object) -> bool:
    """Tell whether a reward gives a score."""
    try:
        return loaded.score(sample, ground_truth, str(ground_truth)) is not None
    except Exception:  # whatever a plugin raises; in a run this is an error of the episode
        return False


def _check_golds(dataset: Dataset, rewards: Sequence[LoadedReward]) -> None:
    """Refuse a gold answer to which no right answer earns full marks.

    Where a reward says how models write right answers, one of them must earn its full marks. Of the other
    rewards one must give them for the gold answer itself; they, and those for a ground truth that is no
    text, such as boxes, must else only be able to read it.

    Raises:
        ValueError: Naming the first row whose gold does not.
    """
    path = dataset.path
    for sample in dataset.first_samples():
        if sample.ground_truth in (None, []):
            continue
        earned = [_earned(path, sample, reward) for reward in rewards]
        for loaded, full in zip(rewards, earned, strict=True):
            if loaded.reward.written is not None and full is False:
                raise ValueError(
                    f"{path}: row {sample.id!r}: reward {loaded.name!r} gives full marks to no answer that "
                    f"a model would write to the gold {str(sample.ground_truth)[:60]!r}"
                    f"{_example(loaded, sample)}; correct the row, or take another reward"
                )
        if not any(earned) and isinstance(_first(sample.ground_truth), str | int | float):
            raise ValueError(
                f"{path}: row {sample.id!r}: the gold answer {str(sample.ground_truth)[:60]!r} earns full "
                "marks from no reward of the task, so nothing could be learned from it"
            )


def _earned(path: Path, sample: Sample, loaded: LoadedReward) -> bool | None:
    """Tell whether a right answer to a sample earns a reward's full marks; None where it does not apply.

    Raises:
        UnusableRow: If an image of the row cannot be used.
        ValueError: If the reward fails on it.
    """
    try:
        answers = loaded.right_answers(sample.ground_truth)
        if answers is None:
            return True  # what a right answer looks like is not known here, so nothing is refused
        scores = [loaded.score(sample, sample.ground_truth, answer) for answer in answers]
    except Exception as error:
        if isinstance(error, ImageError) or isinstance(error.__cause__ or error.__context__, ImageError):
            raise UnusableRow(f"{path}: row {sample.id!r}: {error}") from error
        raise ValueError(f"{path}: row {sample.id!r}: a reward failed on the gold answer: {error}") from error
    if scores and all(score is None for score in scores):
        return None
    full = loaded.reward.high - NEARLY * (loaded.reward.high - loaded.reward.low)
    return any(score is not None and score.value >= full for score in scores)


def _example(loaded: LoadedReward, sample: Sample) -> str:
    """Return the shortest right answer that was tried, if any was."""
    shortest = min(loaded.right_answers(sample.ground_truth) or (), key=len, default="")
    return f", such as {shortest[:80]!r}" if shortest else ""


def _first(ground_truth: object) -> object:
    """Return one of several golds, or the only one."""
    return ground_truth[0] if isinstance(ground_truth, list) else ground_truth
