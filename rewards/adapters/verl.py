"""Reward functions of verl and of its forks EasyR1 and DeepEyes."""

import enum
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from posttrain.types import RewardInput
from rewards.adapters.episodes import as_object, extra_info, gold_of, ids_of, no_gold, whole_response
from rewards.adapters.foreign import Foreign, foreign, judging
from rewards.adapters.verdicts import verdict_of, verdicts_of
from rewards.sdk import Reward, RewardError, Verdict


class Role(enum.Enum):
    """What an argument stands for."""

    DATA_SOURCE = enum.auto()
    RESPONSE = enum.auto()
    GOLD = enum.auto()
    EXTRA_INFO = enum.auto()
    RECORD = enum.auto()


#: What verl passes to its functions, in order.
_STANDARD: dict[str, Role] = {
    "data_source": Role.DATA_SOURCE,
    "solution_str": Role.RESPONSE,
    "ground_truth": Role.GOLD,
    "extra_info": Role.EXTRA_INFO,
}
#: The names that functions for single data sets give to the same.
_NAMES: dict[str, Role] = {
    **_STANDARD,
    "predict_str": Role.RESPONSE,
    "model_output": Role.RESPONSE,
    "completion": Role.RESPONSE,
    "response": Role.RESPONSE,
    "predict": Role.RESPONSE,
    "prediction": Role.RESPONSE,
    "test_cases": Role.GOLD,
    "reward_input": Role.RECORD,
}
#: Words in the names of other arguments that say what these are: golds, or neither responses nor golds.
_GOLDS = frozenset("gold golden gt sol label target reference ref truth expected".split())
_SOURCES = frozenset("data dataset source".split())
_EXTRAS = frozenset("extra info meta metadata".split())
_NEITHER = frozenset(
    "question query problem prompt instruction system message image video tool id index type config url"
    " weight tokenizer length max min reward score".split()
)
_OTHERS = _SOURCES | _EXTRAS | _NEITHER
_BATCHED: dict[str, Role] = {f"{key}s": role for key, role in _NAMES.items()}


def from_verl(
    compute_score: Callable[..., object], name: str = "", low: float = 0.0, high: float = 1.0
) -> Reward:
    r"""Make a reward of a function of verl, EasyR1 or DeepEyes.

    Its signature says what it is given, by position or by keyword:

    - `(data_source, solution_str, ground_truth, extra_info)`, or those of them that it takes; the response
      also as `predict_str`, `model_output`, `completion`, `response`, `predict` or `prediction`, the gold
      also as `test_cases`, and both under names of its own that leave no doubt;
    - lists of them for a batch, here the group: `(data_sources, solution_strs, ground_truths, extra_infos)`;
    - EasyR1's `reward_input`, a dict of `response`, `response_length` (tokens), `ground_truth` and the
      columns, or `reward_inputs`, a list of them.

    Other arguments without a default are the sample's columns of that name, or values of its `extra_info`;
    bind `reward_kwargs` with `functools.partial`. The function may be async, an object with `__call__`, or a
    class, which is instantiated once.

    The response is all that followed the prompt: one turn is its text alone; between turns the tools' answers
    stand as `\nuser\n<tool_response>\n…\n</tool_response>\nassistant\n`, an image in them as
    `<|vision_start|><|image_pad|><|vision_end|>`. `data_source` is the sample's column of that name (""
    without one), and `extra_info` its column of that name or else all of its columns, with `num_turns` and
    `rollout_reward_scores` added. The gold is the ground truth, or `reward_model.ground_truth` or
    `extra_info.ground_truth`, objects or JSON; where a function names it and there is none, that is an error.

    It returns a number of any kind; a dict whose "score" ("overall" for EasyR1) is the value, whose other
    numbers become parts and whose texts the note; a tuple, of which the first entry counts; or None where it
    does not apply.

    Args:
        compute_score: The function.
        name: A short name; the function's or the class's if empty.
        low: Its least value.
        high: Its greatest value.

    Raises:
        RewardError: If it takes no response; when it is called, if an argument cannot be given.

    Example:
        geometry = from_verl(geo3k.compute_score)  # in the YAML: my_rewards.py:geometry
        strict = from_verl(functools.partial(gsm8k.compute_score, method="strict"), name="gsm8k")
    """
    one = foreign(compute_score, name)
    form = _form(one)
    if form.batched:

        def ask_all(xs: Sequence[RewardInput]) -> tuple[object, Callable[[object], Sequence[Verdict]]]:
            asked = [form.arguments(x) for x in xs]
            shared = [key for key in asked[0] if all(key in each for each in asked)]
            found = one.call({key: [each[key] for each in asked] for key in shared})
            return found, lambda found: verdicts_of(found, one.name, len(xs))

        return Reward(one.name, judging(one, ask_all), low, high, group=True)

    def ask(x: RewardInput) -> tuple[object, Callable[[object], Verdict]]:
        return one.call(form.arguments(x)), lambda found: verdict_of(found, one.name)

    return Reward(one.name, judging(one, ask), low, high)


@dataclass(frozen=True)
class _Form:
    """Which argument of a function stands for what.

    Attributes:
        name: What the reward is called.
        known: What arguments are whose names say it.
        others: The other arguments without a default, in order.
        takes_all: Whether the function takes every keyword.
        batched: Whether each argument is a list with an entry an episode.
    """

    name: str
    known: Mapping[str, Role]
    others: Sequence[str]
    takes_all: bool
    batched: bool

    def arguments(self, x: RewardInput) -> dict[str, object]:
        """Return what the function is given of one episode.

        Raises:
            RewardError: If an argument cannot be given.
        """
        held = {**(as_object(x.columns.get("extra_info")) or {}), **x.columns}
        columns = {key: held[key] for key in self.others if key in held}
        left = [key for key in self.others if key not in columns]
        roles = {**self.known, **_guesses(left, self.known)}
        if self.takes_all and Role.RECORD not in roles.values():
            more = {key: role for key, role in _STANDARD.items() if role not in roles.values()}
            if gold_of(x) is None:
                more.pop("ground_truth", None)
            roles |= {f"{key}s": role for key, role in more.items()} if self.batched else more
        if not {Role.RESPONSE, Role.RECORD} & {*roles.values()}:
            raise RewardError(
                f"reward {self.name!r}: which of its arguments ({', '.join(self.others) or 'none'}) is the"
                " response cannot be told; call that one solution_str, or wrap the function"
            )
        if strange := next((key for key in left if key not in roles), None):
            raise self._strange(strange, x)
        return columns | {key: self._value(role, x) for key, role in roles.items()}

    def _value(self, role: Role, x: RewardInput) -> object:
        if role is Role.RESPONSE:
            return whole_response(x)
        if role is Role.EXTRA_INFO:
            return extra_info(x, self.name)
        if role is Role.DATA_SOURCE:
            return x.columns.get("data_source", "")
        if (gold := gold_of(x)) is None:
            raise no_gold(self.name)
        return gold if role is Role.GOLD else record(x, self.name)

    def _strange(self, key: str, x: RewardInput) -> RewardError:
        if key in ("prompts", "completion_ids", "response_token_ids"):
            return RewardError(f"reward {self.name!r} asks for {key!r}, which is TRL's: use from_trl")
        return RewardError(
            f"reward {self.name!r} asks for {key!r}, which is neither one of verl's arguments nor a column of"
            f" the sample (columns: {', '.join(x.columns) or 'none'}); bind it with functools.partial"
        )


class _Record(dict[str, object]):
    """EasyR1's view of an episode, which says why a key is missing."""

    def __init__(self, values: Mapping[str, object], name: str):
        super().__init__(values)
        self._name = name

    def __missing__(self, key: str) -> object:
        reason = (
            "the episode has no completion_ids" if key == "response_length" else "no column has that name"
        )
        raise RewardError(f"reward {self._name!r} asks for {key!r}, but {reason}")


def record(x: RewardInput, name: str) -> dict[str, object]:
    """Return an episode as EasyR1 shows it, with the sample's columns.

    Raises:
        RewardError: If there is no gold answer.
    """
    if (gold := gold_of(x)) is None:
        raise no_gold(name)
    ids = ids_of(x)
    length = {} if ids is None else {"response_length": len(ids)}
    return _Record({**x.columns, "response": whole_response(x), "ground_truth": gold, **length}, name)


def _form(one: Foreign) -> _Form:
    """See what the arguments of a function stand for, as far as their names and types say it.

    Raises:
        RewardError: If it takes nothing that can be the response.
    """
    batched = any(key in _BATCHED for key in one.parameters)
    names = _BATCHED if batched else _NAMES
    known: dict[str, Role] = {}
    for key in one.parameters:
        if key in names and names[key] not in known.values():
            known[key] = names[key]
    if not known and (found := _record_by_type(one)):
        key, batched = found
        known[key] = Role.RECORD
    if one.in_order:
        known = dict(_STANDARD)
    others = [key for key in one.required if key not in known]
    if not others and not one.takes_all and not {Role.RESPONSE, Role.RECORD} & {*known.values()}:
        raise RewardError(f"reward {one.name!r} takes no response: call that argument solution_str")
    return _Form(one.name, known, others, one.takes_all, batched)


def _guesses(others: Sequence[str], known: Mapping[str, Role]) -> dict[str, Role]:
    """Tell what arguments with names of their own are: a response, then a gold, where these are missing.

    Nothing is guessed where there are more of them, or where a name means something else.
    """
    if not known and len(others) == 4 and _means(others[0], _SOURCES) and _means(others[3], _EXTRAS):
        return dict(zip(others, _STANDARD.values(), strict=True))
    given = {*known.values()}
    missing = [role for role in (Role.RESPONSE, Role.GOLD) if role not in given and Role.RECORD not in given]
    if len(others) > len(missing) or any(key in _NAMES or _means(key, _OTHERS) for key in others):
        return {}
    if Role.GOLD in missing and (gold := next((key for key in others if _means(key, _GOLDS)), None)):
        rest = [key for key in others if key != gold]
        return {gold: Role.GOLD, **dict.fromkeys(rest, Role.RESPONSE)}
    return dict(zip(others, missing, strict=False))


def _means(key: str, words: frozenset[str]) -> bool:
    """Tell whether one of the words of a name, in the singular or plural, is among those."""
    return any(word in words or word.removesuffix("s") in words for word in key.lower().split("_"))


def _record_by_type(one: Foreign) -> tuple[str, bool] | None:
    """Return the only argument of a function if it is annotated as a dict or a list of dicts, and which."""
    if len(one.required) != 1:
        return None
    (key,) = one.required
    kind = one.parameters[key].annotation
    if _is_object(kind):
        return key, False
    inner = typing.get_args(kind)
    if typing.get_origin(kind) in (list, Sequence) and len(inner) == 1 and _is_object(inner[0]):
        return key, True
    return None


def _is_object(kind: object) -> bool:
    return (typing.get_origin(kind) or kind) in (dict, Mapping) or typing.is_typeddict(kind)
