"""The form of a judge's verdict, and the only way by which text becomes one.

A verdict is the judge's whole reply, one JSON object that repeats the request's nonce. An object that stands
inside a longer text, as where the judge quotes the answer, is no verdict; neither is one with another nonce,
which nobody but the judge has seen.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from jsonschema import Draft202012Validator

from posttrain.chat_endpoint import BadReply, read_completion
from posttrain.files.strict_json import Json, JsonError, JsonObject, parse_json
from posttrain.messages import THINK_END

#: What a judge said, of the form that was asked for: `reason`, and `scores` or `winner`.
Verdict: TypeAlias = dict[str, Any]

_FENCED = re.compile(r"```(?:json)?\n(.*)\n```", re.DOTALL)


class BadVerdict(BadReply):
    """The endpoint's reply is not a verdict; the message says why."""


def scores_schema(aspects: Collection[str], scale: int) -> JsonObject:
    """Build the JSON schema of `{"reason", "nonce", "scores": {aspect: 0…scale}}`."""
    score: JsonObject = {"type": "integer", "minimum": 0, "maximum": scale}
    return _schema("scores", _object(dict.fromkeys(aspects, score)))


def winner_schema() -> JsonObject:
    """Build the JSON schema of `{"reason", "nonce", "winner": "A" | "B" | "tie"}`."""
    return _schema("winner", {"type": "string", "enum": ["A", "B", "tie"]})


def completion_text(body: bytes) -> str:
    """Return what the model wrote, from the body of a chat completion.

    Raises:
        BadReply: If the body is none, or the text was cut off.
    """
    completion = read_completion(body)
    if completion.truncated:
        raise BadVerdict("the verdict was cut off; allow more tokens with request: {max_tokens: …}")
    return completion.text


def completion_usage(body: bytes) -> Mapping[str, object] | None:
    """Return how many tokens a chat completion used, as its endpoint says; None where it does not."""
    try:
        completion = parse_json(body.decode())
    except (UnicodeDecodeError, JsonError):
        return None
    usage = completion.get("usage") if isinstance(completion, dict) else None
    return usage if isinstance(usage, dict) else None


def read_verdict(text: str, nonce: str, schema: JsonObject) -> Verdict:
    """Read the verdict, and return it without its nonce.

    Args:
        text: The judge's whole reply; thinking before it and one code fence around it are taken off.
        nonce: The nonce of the request.
        schema: The form expected.

    Raises:
        BadVerdict: If it is anything but that.
    """
    text = text.rpartition(THINK_END)[2].strip()  # the reason may quote an opening tag
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    try:
        verdict = parse_json(text)
    except JsonError as error:
        raise BadVerdict(f"the verdict is not JSON: {error}") from None
    check(verdict, schema, "the verdict")
    if verdict.pop("nonce") != nonce:
        raise BadVerdict("the verdict has another request's nonce, so the judge may have copied it")
    return verdict


def check(value: Json, schema: JsonObject, what: str) -> None:
    """Refuse a value that does not fit a schema.

    Raises:
        BadVerdict: Naming the first place that does not fit.
    """
    for error in Draft202012Validator(schema).iter_errors(value):
        raise BadVerdict(f"{what} does not fit: {error.json_path}: {error.message[:200]}")


def _schema(key: str, value: JsonObject) -> JsonObject:
    """Build a verdict's schema; the reason stands first, so that the judge thinks before it decides."""
    return _object({"reason": {"type": "string"}, "nonce": {"type": "string"}, key: value})


def _object(properties: Mapping[str, Json]) -> JsonObject:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
