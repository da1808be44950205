"""JSON in an answer, and JSON schemas from a dataset, checked in bounded time.

A schema can be as hostile as an answer: patterns that backtrack for ever, references to the network, and
references that multiply. Patterns run on Rust's regex engine (pydantic's), which takes linear time and knows
no look-around; references must point into the schema itself; and one check has a budget of
`MAX_STEPS`.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypeAlias

import jsonschema
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from posttrain.files.strict_json import Json, JsonError, JsonObject, parse_json

MAX_LENGTH = 200_000
MAX_STEPS = 100_000
#: Keywords that jsonschema evaluates by Python's backtracking patterns, or by ways around the budget.
_REFUSED = ("patternProperties", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef")
_DEEPEST_SCHEMA = 40
_MAX_SCHEMA = 100_000
_TOO_COSTLY = "too costly to check"
_BASE = jsonschema.Draft202012Validator
Violation: TypeAlias = jsonschema.ValidationError
#: What checks one keyword of a schema: called with validator, its value, the instance and the schema.
Keyword: TypeAlias = Callable[..., Iterable[Violation] | None]


class _TooCostlyError(Exception):
    """A check went over its budget."""


def answer_json(answer: str) -> Json:
    """Read the JSON that an answer is, or that its one fenced block holds.

    Raises:
        JsonError: If there is none, more than one fenced block, or it is not strict JSON.
    """
    answer = answer.strip()
    if len(answer) > MAX_LENGTH:
        raise JsonError(f"{len(answer)} characters are too many to check ({MAX_LENGTH} at most)")
    if answer.startswith(("{", "[", '"')):
        return parse_json(answer)
    blocks = _fenced(answer)
    if len(blocks) > 1:
        raise JsonError("there are several fenced blocks")
    return parse_json(blocks[0] if blocks else answer)


def _fenced(text: str) -> list[str]:
    """Return what stands in the fenced blocks that are closed."""
    blocks: list[str] = []
    block: list[str] | None = None
    for line in text.split("\n"):
        mark = line.strip()
        if block is None and mark.startswith("```") and "`" not in mark[3:]:
            block = []
        elif block is not None and mark == "```":
            blocks.append("\n".join(block))
            block = None
        elif block is not None:
            block.append(line)
    return blocks


def read_schema(schema: object) -> JsonObject:
    """Read a schema given as an object or as JSON text, and check it.

    Raises:
        ValueError: If it is no JSON schema, or one that is refused here; the message says why.
    """
    if isinstance(schema, str):
        try:
            schema = parse_json(schema)
        except JsonError as error:
            raise ValueError(f"the JSON schema is not JSON ({error}); correct the dataset") from None
    if not isinstance(schema, dict):
        raise ValueError(f"a JSON schema must be an object, not {type(schema).__name__}; correct the dataset")
    # A `$schema` would make jsonschema change to a validator without the limits.
    schema = {key: value for key, value in schema.items() if key != "$schema"}
    text = json.dumps(schema, sort_keys=True)
    if len(text) > _MAX_SCHEMA:
        raise ValueError(f"the JSON schema has {len(text)} characters; {_MAX_SCHEMA} are allowed")
    _check(text)
    return schema


def violation(schema: JsonObject, value: Json) -> str:
    """Say why a value does not satisfy a schema that `read_schema` accepted, or "" where it does."""
    try:
        error = next(_validator(schema).iter_errors(value), None)
    except (_TooCostlyError, RecursionError):
        return _TOO_COSTLY
    return "" if error is None else f"{error.json_path}: {error.message}"[:200]


@functools.lru_cache(maxsize=256)
def _check(text: str) -> None:
    """Refuse a schema that is wrong or not bounded; one that passed is not checked again."""
    schema = json.loads(text)
    references: list[str] = []
    _walk(schema, references)
    try:
        _BASE.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"wrong JSON schema at {error.json_path}: {error.message}"[:300]) from None
    resource = DRAFT202012.create_resource(schema)
    resolver = Registry().with_resource("", resource).resolver()
    for reference in references:
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise ValueError(f"the JSON schema refers to {reference!r}, which it does not have") from None
    for sample in (None, {}, [], "", 0):  # a reference round in a circle shows on any value
        if violation(schema, sample) == _TOO_COSTLY:
            raise ValueError("the JSON schema is too costly: its references multiply or go in a circle")


def _walk(part: object, references: list[str], depth: int = 0) -> None:
    """Collect the references; refuse remote ones and whatever has no bound."""
    if depth > _DEEPEST_SCHEMA:
        raise ValueError(f"the JSON schema is nested deeper than {_DEEPEST_SCHEMA} levels; simplify it")
    if isinstance(part, list):
        for item in part:
            _walk(item, references, depth + 1)
    if not isinstance(part, dict):
        return
    for key, item in part.items():
        if key in _REFUSED and not (
            isinstance(item, dict) and "type" in item
        ):  # else a property of that name
            raise ValueError(f"the JSON schema has {key!r}, which cannot be checked in bounded time")
        if key in ("$id", "$schema") and depth and isinstance(item, str):
            raise ValueError(f"the JSON schema has a {key} below its top; remove it")
        if key == "$ref" and isinstance(item, str):
            if not item.startswith("#"):
                raise ValueError(f"the JSON schema refers to {item!r}; only references within it are read")
            references.append(item)
        if key == "pattern" and isinstance(item, str):
            _pattern(item)
        _walk(item, references, depth + 1)


@functools.lru_cache(maxsize=256)
def _pattern(pattern: str) -> TypeAdapter[str]:
    """Compile a pattern by Rust's engine.

    Raises:
        ValueError: If the engine does not take it (look-around, back-references, huge repetitions).
    """
    try:
        return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
    except SchemaError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise ValueError(f"the pattern {pattern[:80]!r} of the JSON schema is refused: {reason}") from None


class _Budget:
    """The work that one check may do."""

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def spend(self, keyword: str, value: object, instance: object) -> None:
        """Pay for one keyword: for each of its branches, and for the text or list that it reads."""
        self.left -= 1 + (len(value) if isinstance(value, dict | list) else 0)
        if keyword in ("pattern", "uniqueItems") and isinstance(instance, str | list):
            self.left -= len(instance) // 10
        if self.left < 0:
            raise _TooCostlyError


def _validator(schema: JsonObject) -> Validator:
    """Build a validator with a fresh budget."""
    budget = _Budget()
    keywords = {**_BASE.VALIDATORS, "pattern": _match_pattern, "uniqueItems": _unique_items}
    counted = {name: _counted(name, function, budget) for name, function in keywords.items()}
    return extend(_BASE, counted)(schema, registry=Registry())


def _counted(name: str, function: Keyword, budget: _Budget) -> Keyword:
    def keyword(validator: object, value: object, instance: object, schema: object) -> Iterator[Violation]:
        budget.spend(name, value, instance)
        yield from function(validator, value, instance, schema) or ()

    return keyword


def _match_pattern(_: object, pattern: str, instance: object, __: object) -> Iterator[Violation]:
    if isinstance(instance, str):
        try:
            _pattern(pattern).validate_python(instance)
        except ValidationError:
            yield Violation(f"{instance[:80]!r} does not match {pattern!r}")


def _unique_items(_: object, wanted: bool, instance: object, __: object) -> Iterator[Violation]:
    """Check that items differ; unlike jsonschema's own check in linear time for lists of objects too."""
    if wanted and isinstance(instance, list):
        seen = {json.dumps(_plain(item), sort_keys=True) for item in instance}
        if len(seen) < len(instance):
            yield Violation("the list has equal items")


def _plain(value: object) -> object:
    """Write a value so that equal numbers are written alike (1.0 is 1)."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
