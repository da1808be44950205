"""What asking judges may cost: calls and money, counted in one file over processes, replicas and resumes.

A call is counted before it is sent, so there are never more than `max_calls`. What it costs is known from its
reply alone; until then it counts with the most that a call has cost, or, before the first reply, with what
its longest reply would. So `max_cost` is not exceeded either, as long as replies say what they used.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posttrain.files.strict_json import JsonError, JsonObject, parse_json
from posttrain.files.tally import Tally, TallyError
from rewards.sdk import LeftOut, RewardError, StopScoring

#: Prices are told for so many tokens.
PER = 1e6
#: Letters of a token of English, where its number is not known yet.
LETTERS = 4

_under_way: Counter[Path] = Counter()
_lock = threading.Lock()


class TokenPrice(BaseModel):
    """What a million tokens cost.

    Attributes:
        input: Of those that are sent.
        output: Of those that the judge writes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)

    def of(self, sent: float, written: float) -> float:
        """Return what so many tokens cost."""
        return (self.input * sent + self.output * written) / PER


class Budget(BaseModel):
    """Limits of what judges may cost, and the file in which it is counted.

    Attributes:
        ledger: The file, in a folder that exists; the processes that share it share the limits.
        max_calls: Most requests, retries included; None for no limit.
        max_cost: Most money, in the currency of the prices; None for no limit.
        prices: By the model's name at its endpoint, what its tokens cost.
        on_exhausted: What happens when a limit is reached: `stop` ends the run with an error, `skip` leaves
            judges out and lets the other rewards of a task count alone.

    Example:
        Budget(ledger=Path("judge-ledger.json"), max_calls=1000)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ledger: Path
    max_calls: int | None = Field(default=None, ge=1)
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    prices: dict[str, TokenPrice] = Field(default_factory=dict)
    on_exhausted: Literal["stop", "skip"] = "stop"

    def params(self) -> JsonObject:
        """Return it as the parameter `budget` of a judge's reward."""
        return self.model_dump(mode="json")


def read_budget(path: Path) -> Budget:
    """Read a budget from a JSON file; a relative ledger lies beside it.

    Raises:
        RewardError: Naming the file and what is wrong with it.
    """
    try:
        budget = Budget.model_validate(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, JsonError) as error:
        raise RewardError(f"{path}: the budget of judges cannot be read: {error}") from None
    except ValidationError as error:
        raise RewardError(f"{path}: {_first(error)}") from None
    return beside(budget, path.parent)


def beside(budget: Budget, folder: Path) -> Budget:
    """Return a budget whose relative ledger lies in a folder."""
    return budget.model_copy(update={"ledger": (folder / budget.ledger).absolute()})


def as_budget(value: object) -> Budget:
    """Read the parameter `budget`.

    Raises:
        ValueError: If it is none.
    """
    try:
        return Budget.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"budget: {_first(error)}") from None


class Purse:
    """Pays for one verdict: counts each of its requests, and what their replies used.

    Used by one request at a time.

    Args:
        budget: The limits.
        model: The judge's name at its endpoint.

    Example:
        purse.take(body, longest_reply=1024)   # before each request
        purse.pay(completion)                  # with each reply
        purse.end()                            # in any case
    """

    def __init__(self, budget: Budget, model: str) -> None:
        self._budget, self._model = budget, model
        self._tally = Tally(budget.ledger)
        self._open = self._ended = False

    def take(self, letters: int, longest_reply: int) -> None:
        """Count a request that is about to be sent.

        Args:
            letters: Letters that it sends.
            longest_reply: Most tokens of its reply.

        Raises:
            StopScoring: If the budget is spent and the run is to stop, or its ledger cannot be used.
            LeftOut: If it is spent and judges are then left out.
        """
        self._settle()
        price = self._price()
        guess = price.of(letters / LETTERS, longest_reply) if price else 0.0
        with _lock:
            if self._ended:  # whoever waited for the verdict has given up, and sends nothing
                return
            self._change(lambda sums: self._one_more(sums, guess))
            _under_way[self._tally.path] += 1
            self._open = True

    def pay(self, usage: Mapping[str, object] | None) -> None:
        """Count what a reply used.

        Args:
            usage: As the endpoint says; None where it does not.

        Raises:
            StopScoring: If money is limited and the endpoint does not say, or the ledger cannot be used.
        """
        sent, written = (_tokens(usage, key) for key in ("prompt_tokens", "completion_tokens"))
        if self._budget.max_cost is not None and (sent is None or written is None):
            raise StopScoring(
                f"judge_budget: the replies of {self._model!r} do not say how many tokens they used, so money"
                " cannot be counted: take out max_cost and limit max_calls"
            )
        sent, written, price = sent or 0, written or 0, self._price()
        cost = price.of(sent, written) if price else 0.0

        def changed(sums: dict[str, float]) -> dict[str, float]:
            return {
                **sums,
                "input_tokens": sums.get("input_tokens", 0.0) + sent,
                "output_tokens": sums.get("output_tokens", 0.0) + written,
                "cost": sums.get("cost", 0.0) + cost,
                "dearest": max(sums.get("dearest", 0.0), cost),
            }

        self._settle()
        self._change(changed)

    def found(self) -> None:
        """Count a verdict that was given before and costs nothing."""
        self._change(lambda sums: {**sums, "cached": sums.get("cached", 0.0) + 1})

    def end(self) -> None:
        """Give up the request that is under way, if any; no other follows."""
        with _lock:
            self._ended = True
        self._settle()

    def _settle(self) -> None:
        """Take the request out of those that are under way."""
        with _lock:
            if self._open:
                _under_way[self._tally.path] -= 1
                self._open = False

    def _price(self) -> TokenPrice | None:
        price = self._budget.prices.get(self._model)
        if price is None and self._budget.max_cost is not None:
            raise StopScoring(f"judge_budget.prices: there is none for {self._model!r}; add it")
        return price

    def _one_more(self, sums: dict[str, float], guess: float) -> dict[str, float]:
        budget, calls = self._budget, sums.get("calls", 0.0)
        if budget.max_calls is not None and calls + 1 > budget.max_calls:
            raise self._spent(f"all {budget.max_calls:,} calls of max_calls were made")
        spent, waiting = sums.get("cost", 0.0), _under_way[self._tally.path] + 1
        at_most = spent + waiting * (sums.get("dearest", 0.0) or guess)
        if budget.max_cost is not None and at_most > budget.max_cost:
            raise self._spent(
                f"{spent:.4g} of max_cost = {budget.max_cost:g} is spent, and a call may exceed it"
            )
        return {**sums, "calls": calls + 1}

    def _spent(self, what: str) -> Exception:
        if self._budget.on_exhausted == "skip":
            return LeftOut(f"the budget of judges is spent: {what}")
        return StopScoring(
            f"the budget of judges is spent: {what} (counted in {self._budget.ledger}). Raise judge_budget"
            " and go on with --resume, or set on_exhausted: skip"
        )

    def _change(self, change: Callable[[dict[str, float]], Mapping[str, float]]) -> None:
        try:
            self._tally.change(change)
        except TallyError as error:
            raise StopScoring(f"judge_budget: {error}; mend or remove it, and go on with --resume") from None


def _tokens(usage: Mapping[str, object] | None, key: str) -> int | None:
    """Return a number of tokens that an endpoint told; None where it is no such number."""
    value = usage.get(key) if usage else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else None


def _first(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the budget'}: {first['msg']}"
