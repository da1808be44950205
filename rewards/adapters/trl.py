"""Reward functions of TRL and of ms-swift."""

from collections.abc import Callable, Sequence

from posttrain.media.images import open_image
from posttrain.types import RewardInput
from rewards.adapters.episodes import chat as as_chat
from rewards.adapters.episodes import completion, gold_of, ids_of, own_text
from rewards.adapters.foreign import Foreign, foreign, judging
from rewards.adapters.verdicts import verdicts_of
from rewards.adapters.verl import record
from rewards.sdk import Reward, RewardError, Verdict

#: Names under which functions ask for the gold answer.
_GOLDS = ("ground_truth", "solution", "answer")
#: Base classes of ms-swift's rewards, which get texts.
_ORM = ("ORM", "AsyncORM")


def from_trl(
    function: Callable[..., object],
    name: str = "",
    low: float = 0.0,
    high: float = 1.0,
    chat: bool | None = None,
) -> Reward:
    """Make a reward of TRL's form, `f(prompts, completions, completion_ids, **columns)`, or ms-swift's.

    The function sees a whole group at once, as TRL shows it a batch. Every argument is a list with one entry
    an episode; arguments that it does not take are left out:

    - `prompts`, `completions`, and `messages`, which is both;
    - `completion_ids`, in ms-swift `response_token_ids`: what the model sampled, without tools' answers;
    - the sample's columns, and its ground truth as `ground_truth`, `solution` and `answer` where no column
      has that name; `images`, those of the prompt as Pillow's, where the function names it;
    - `log_extra(column, values)`, `log_metric(name, value)`: numbers become parts of the score, texts notes;
    - `infer_requests` of ms-swift and `reward_inputs` of EasyR1.

    It may be async, a lambda, a partial, an object with `__call__`, or a class such as ms-swift's ORMs, which
    is instantiated once. It returns a list, an array, a tensor or an iterator of numbers of any kind, of None
    where it does not apply, or of dicts (see `from_verl`).

    Args:
        function: The reward function.
        name: A short name; the function's or the class's if empty.
        low: Its least value.
        high: Its greatest value.
        chat: Whether prompts and completions are lists of messages, as TRL passes conversational data; else
            they are texts, completions of the model's words alone. None for texts with ms-swift's ORMs, and
            messages with all others.

    Raises:
        RewardError: When it is called, if it asks for an argument that is not there: `trainer_state` without
            a default, token ids of episodes without them, a gold answer of a sample without one.

    Example:
        def format_reward(completions, **kwargs):
            return [float("<answer>" in c[0]["content"]) for c in completions]

        tagged = from_trl(format_reward)  # in the YAML: my_rewards.py:tagged
    """
    one = foreign(function, name)
    is_orm = any(base.__name__ in _ORM for base in one.bases)
    as_messages = not is_orm if chat is None else chat

    def ask(xs: Sequence[RewardInput]) -> tuple[object, Callable[[object], Sequence[Verdict]]]:
        log = _Log(len(xs))
        values = _values(xs, one, as_messages) | {"log_extra": log.extra, "log_metric": log.metric}
        if is_orm and one.required and one.required[0] not in values:
            values[one.required[0]] = values["completions"]  # ms-swift passes them by position
        if one.in_order:
            values = {key: values[key] for key in ("prompts", "completions")}
        for key in one.required:
            if key not in values:
                raise RewardError(f"TRL reward {one.name!r} asks for {key!r}, which {_absence(key, xs)}")
        return one.call(values), lambda found: verdicts_of(found, one.name, len(xs), log.entries)

    return Reward(one.name, judging(one, ask), low, high, group=True)


class _Log:
    """What a function logs beside its values: an entry an episode."""

    def __init__(self, count: int):
        self.entries: list[dict[str, object]] = [{} for _ in range(count)]

    def extra(self, column: str, values: Sequence[object]) -> None:
        """Keep one value an episode; TRL takes more or fewer, so this does."""
        for entry, value in zip(self.entries, values, strict=False):
            entry[column] = value

    def metric(self, name: str, value: object) -> None:
        """Keep one number for all of them."""
        for entry in self.entries:
            entry[name] = value


def _values(xs: Sequence[RewardInput], one: Foreign, as_messages: bool) -> dict[str, object]:
    """Return everything that a function may ask for, of every episode."""
    values: dict[str, object] = {}
    golds = [gold_of(x) for x in xs]
    if None not in golds:
        values |= dict.fromkeys(_GOLDS, golds)
    for key in {key for x in xs for key in x.columns}:
        values[key] = [x.columns.get(key) for x in xs]
    prompts = [as_chat(x.prompt) for x in xs]
    messages = [[*prompt, *completion(x)] for prompt, x in zip(prompts, xs, strict=True)]
    values["prompts"] = prompts if as_messages else [_text(prompt) for prompt in prompts]
    values["completions"] = [completion(x) if as_messages else own_text(x) for x in xs]
    values["messages"] = messages
    values["infer_requests"] = [{"messages": dialogue} for dialogue in messages]
    ids = [ids_of(x) for x in xs]
    if None not in ids:
        values["completion_ids"] = values["response_token_ids"] = ids
    if "reward_inputs" in one.parameters:
        values["reward_inputs"] = [record(x, one.name) for x in xs]
    if "images" in one.parameters and "images" not in values:
        shown = [[image for message in x.prompt for image in message.images] for x in xs]
        values["images"] = [[open_image(image.path) for image in images] for images in shown]
    return values


def _text(messages: Sequence[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages)


def _absence(key: str, xs: Sequence[RewardInput]) -> str:
    """Say why an argument is not there."""
    if key in ("completion_ids", "response_token_ids"):
        return "the episodes do not have: only rollouts know what was sampled, and requests that say it"
    if key in _GOLDS:
        return "the samples do not have: neither a column nor a ground_truth, which may stand in reward_model"
    if key in ("data_source", "solution_str", "predict_str", "reward_input"):
        return "is verl's: use from_verl"
    columns = sorted({column for x in xs for column in x.columns})
    return f"the samples do not have (columns: {', '.join(columns) or 'none'})"
