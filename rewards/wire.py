"""The JSON that rewards travel in, between trainer, server and worker processes.

Reading is strict: what comes from the network is either exactly of this form or refused with a reason.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypeAlias, TypedDict

from posttrain.files.strict_json import JsonObject, parse_json
from posttrain.messages import message_from_json, message_to_json
from posttrain.reward_spec import RewardSpec
from posttrain.types import (
    Message,
    RewardInput,
    RewardResult,
    Score,
    ToolCall,
)
from rewards.manager import Call, Outcome
from rewards.parameters import Parameter

#: What a value must be an instance of.
Kind: TypeAlias = type | tuple[type, ...]


class WireError(ValueError):
    """Data that is not of the wire's form; the message names the place."""


class SpecRow(TypedDict):
    """A reward as a scoring process is asked for it."""

    name: str
    params: Mapping[str, object]


class CallRow(TypedDict):
    """A call of a reward; `members` are the places of its episodes in the job."""

    spec: SpecRow
    members: list[int]


class JobHeader(TypedDict):
    """What goes to a scoring process before its episodes.

    Attributes:
        calls: What to do, in order.
        inputs: How many episodes follow.
        id: Number of the call, where several are under way at once.
        deadline_s: Seconds that the call may take, where the process itself watches the time.
    """

    calls: list[CallRow]
    inputs: int
    id: NotRequired[int]
    deadline_s: NotRequired[float]


#: What a loaded reward says of itself; `GET /v1/rewards` answers with a list of these.
RewardInfo = TypedDict(
    "RewardInfo",
    {
        "name": str,
        "low": float,
        "high": float,
        "group": bool,
        "async": bool,
        "deadline_s": float | None,
        "guarded": list[str],
        "params": list[Parameter],
        "summary": str,
    },
)


def dumps(value: object) -> bytes:
    """Write strict JSON in UTF-8.

    Raises:
        WireError: If the value holds NaN, Infinity, half a surrogate pair, or something that JSON cannot
            say.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"cannot be written as JSON: {error}") from None


def loads(body: bytes) -> Any:
    """Read strict JSON in UTF-8.

    Raises:
        WireError: On anything that `posttrain.files.strict_json` refuses, and on text that is not UTF-8.
    """
    try:
        return parse_json(body.decode())
    except ValueError as error:
        raise WireError(f"not strict JSON: {error}") from None


def score_request(
    specs: Sequence[RewardSpec], inputs: Sequence[RewardInput], groups: Sequence[int] | None
) -> bytes:
    """Write the body of `POST /v1/score`."""
    row: JsonObject = {
        "rewards": [spec_to_json(spec) for spec in specs],
        "inputs": [input_to_json(x) for x in inputs],
    }
    return dumps(row | ({} if groups is None else {"groups": list(groups)}))


def read_score_request(body: bytes) -> tuple[list[RewardSpec], list[RewardInput], list[int] | None]:
    """Read the rewards, episodes and groups of a request.

    Raises:
        WireError: Naming the first place that is wrong.
    """
    row = _fields(loads(body), "the request", {"rewards": list, "inputs": list}, {"groups": list})
    specs = [spec_from_json(spec, f"rewards[{i}]") for i, spec in enumerate(row["rewards"])]
    groups = row.get("groups")
    if any(type(group) is not int for group in groups or ()):
        raise WireError("groups must be whole numbers, one for each input")
    return specs, [input_from_json(x, f"inputs[{i}]") for i, x in enumerate(row["inputs"])], groups


def job_header(calls: Sequence[Call], inputs: int) -> JobHeader:
    """Write what goes to a scoring process before so many episodes; members are their places."""
    rows: list[CallRow] = [
        {"spec": {"name": call.spec.name, "params": call.spec.params}, "members": list(call.members)}
        for call in calls
    ]
    return {"calls": rows, "inputs": inputs}


def spec_to_json(spec: RewardSpec) -> JsonObject:
    """Write every field of a reward of a list."""
    return dataclasses.asdict(spec)


def spec_from_json(value: object, where: str) -> RewardSpec:
    """Read what `spec_to_json` wrote; all fields but the name are optional."""
    optional: dict[str, Kind] = {"weight": (int, float), "params": dict, "audit_share": (int, float)}
    row = _fields(value, where, {"name": str}, {**optional, "only_if": dict, "unless": dict})
    conditions: dict[str, dict[str, float]] = {}
    for key in ("only_if", "unless"):
        gates = row.get(key, {})
        _fields(gates, f"{where}.{key}", {}, dict.fromkeys(gates, (int, float)))
        conditions[key] = {name: float(least) for name, least in gates.items()}
    return RewardSpec(
        row["name"],
        float(row.get("weight", 1.0)),
        row.get("params", {}),
        **conditions,
        audit_share=float(row.get("audit_share", 0.0)),
    )


def input_to_json(x: RewardInput) -> JsonObject:
    """Write an episode; images stay references."""
    return {
        "prompt": [message_to_json(message) for message in x.prompt],
        "response": [message_to_json(message) for message in x.response],
        "answer": x.answer,
        "ground_truth": x.ground_truth,
        "columns": x.columns,
        "tool_calls": [_tool_call_to_json(call) for call in x.tool_calls],
        "truncated": x.truncated,
        "completion_ids": list(x.completion_ids),
        "outcome": {**x.outcome},
    }


def input_from_json(value: object, where: str) -> RewardInput:
    """Read an episode; only `prompt`, `response` and `answer` are required."""
    row = _fields(
        value,
        where,
        {"prompt": list, "response": list, "answer": str},
        {
            "ground_truth": object,
            "columns": dict,
            "tool_calls": list,
            "truncated": bool,
            "completion_ids": list,
            "outcome": dict,
        },
    )
    calls = enumerate(row.get("tool_calls", []))
    return RewardInput(
        prompt=_messages(row["prompt"], f"{where}.prompt"),
        response=_messages(row["response"], f"{where}.response"),
        answer=row["answer"],
        ground_truth=row.get("ground_truth"),
        columns=row.get("columns", {}),
        tool_calls=tuple(_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in calls),
        truncated=row.get("truncated", False),
        completion_ids=token_ids(row.get("completion_ids", []), f"{where}.completion_ids"),
        outcome=_outcome(row.get("outcome", {}), f"{where}.outcome"),
    )


def _outcome(value: dict[str, Any], where: str) -> dict[str, float]:
    _fields(value, where, {}, dict.fromkeys(value, (int, float)))
    return {name: float(number) for name, number in value.items()}


def token_ids(value: object, where: str) -> tuple[int, ...]:
    """Read the token ids of an episode.

    Raises:
        WireError: If they are no list of whole numbers from 0 on.
    """
    if not isinstance(value, list) or not all(type(each) is int and each >= 0 for each in value):
        raise WireError(f"{where} must be a list of token ids, whole numbers from 0 on")
    return tuple(value)


def outcome_to_json(outcome: Outcome) -> JsonObject:
    """Write every field of what a reward said of an episode."""
    return dataclasses.asdict(outcome)


def outcome_from_json(row: dict[str, Any]) -> Outcome:
    """Read what `outcome_to_json` wrote."""
    return Outcome(**{**row, "score": Score(**row["score"]) if row["score"] else None})


def result_to_json(result: RewardResult) -> JsonObject:
    """Write every field of the verdict."""
    return dataclasses.asdict(result)


def result_from_json(value: object, where: str) -> RewardResult:
    """Read what `result_to_json` wrote."""
    kinds: dict[str, Kind] = {"values": dict, "parts": dict, "notes": dict, "errors": dict}
    row = _fields(value, where, kinds, {"total": (int, float, type(None))})
    return RewardResult(**{"total": None, **row})


def _messages(rows: Sequence[object], where: str) -> tuple[Message, ...]:
    messages = []
    for i, row in enumerate(rows):
        row = _fields(row, f"{where}[{i}]", {"role": str, "content": (str, list)}, {})
        try:
            messages.append(message_from_json(row))
        except ValueError as error:
            raise WireError(f"{where}[{i}]: {error}") from None
    return tuple(messages)


def _tool_call_to_json(call: ToolCall) -> JsonObject:
    """Write a call without its seconds: a reward must not depend on how busy a machine was."""
    return {name: value for name, value in dataclasses.asdict(call).items() if name != "seconds"}


def _tool_call(value: object, where: str) -> ToolCall:
    required: dict[str, Kind] = {"name": str, "arguments": dict, "ok": bool}
    return ToolCall(**_fields(value, where, required, {"error": str, "images": int}))


def _fields(
    value: object, where: str, required: dict[str, Kind], optional: dict[str, Kind]
) -> dict[str, Any]:
    """Check a JSON object's keys and the types of their values.

    A boolean is no number here, though Python thinks so.
    """
    if not isinstance(value, dict):
        raise WireError(f"{where} must be an object, got {type(value).__name__}")
    kinds = required | optional
    for key, item in value.items():
        if key not in kinds:
            raise WireError(f"{where} has an unknown key {key[:80]!r}; known: {', '.join(kinds)}")
        kind = kinds[key]
        if not isinstance(item, kind) or (isinstance(item, bool) and kind not in (bool, object)):
            raise WireError(f"{where}.{key} has the wrong type {type(item).__name__}")
    missing = [key for key in required if key not in value]
    if missing:
        raise WireError(f"{where} lacks the key {missing[0]!r}")
    return value
