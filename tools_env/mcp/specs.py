"""The tools that a server lists, as they may be shown to a model; nothing of what it says is trusted."""

import json
import re
from collections.abc import Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from posttrain.files.strict_json import Json, JsonObject, parse_json
from posttrain.types import ToolSpec
from tools_env.mcp.settings import McpSettings
from tools_env.shown import unmarked

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")
#: Longest description of a tool, and longest schema, in characters.
MAX_DESCRIPTION, MAX_SCHEMA = 10_000, 50_000
#: Keys of a schema whose values are words for people, and those under which every key is a name.
_WORDS, _NAMES = ("description", "title", "$comment"), ("properties", "$defs", "definitions")


class SpecError(ValueError):
    """A tool of a server's cannot be offered; the message names it and says why."""


def offered(listed: Sequence[JsonObject], settings: McpSettings) -> dict[str, ToolSpec]:
    """Return the tools that a task offers, by the server's names.

    Args:
        listed: What the server lists.
        settings: Which of them are offered, and with which prefix.

    Raises:
        SpecError: If one of them cannot be shown to a model, is listed twice or not at all, or there is none.
    """
    names = [tool.get("name") for tool in listed]
    if missing := [name for name in settings.enabled_tools if name not in names]:
        raise SpecError(f"it has no tool {missing[0]!r}; it has {', '.join(map(str, names)) or 'none'}")
    wanted = [tool for tool in listed if not settings.enabled_tools or tool["name"] in settings.enabled_tools]
    specs: dict[str, ToolSpec] = {}
    for tool in wanted:
        spec = _spec(tool, settings.prefix)
        if str(tool["name"]) in specs:
            raise SpecError(f"it lists two tools called {tool['name']!r}")
        specs[str(tool["name"])] = spec
    if not specs:
        raise SpecError("it has no tools")
    return specs


def _spec(tool: JsonObject, prefix: str) -> ToolSpec:
    name = str(tool.get("name", ""))
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"a tool is called {name[:80]!r}, which is no name (letters, digits, '_', '-', '.', '/')"
        )
    told = f"tool {name!r}"
    description = str(tool.get("description") or tool.get("title") or "").strip()
    if len(description) > MAX_DESCRIPTION:
        raise SpecError(
            f"{told} is described in {len(description):,} characters; {MAX_DESCRIPTION:,} at most"
        )
    schema = tool.get("inputSchema")
    try:
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA:
            raise SpecError(f"{told} has a schema of {len(text):,} characters; {MAX_SCHEMA:,} at most")
        shown = _shown(parse_json(text), told)
        Draft202012Validator.check_schema(shown)
    except SpecError:
        raise
    except SchemaError as error:
        raise SpecError(f"{told} has a schema that is none: {error.message[:200]}") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{told} has a schema that cannot be read: {error}") from error
    if not isinstance(shown, dict) or shown.get("type") != "object":
        raise SpecError(f'{told} has a schema that is not of {{"type": "object"}}')
    return ToolSpec(prefix + name, unmarked(description), shown)


def _shown(schema: Json, told: str) -> Any:
    """Return a schema without what a chat template would take for its own, and without ways out of it."""
    if isinstance(schema, list):
        return [_shown(each, told) for each in schema]
    if isinstance(schema, str):
        if unmarked(schema) != schema:
            raise SpecError(
                f"{told} has {schema[:80]!r} in its schema, which the chat template would read as its own"
            )
        return schema
    if not isinstance(schema, dict):
        return schema
    made: JsonObject = {}
    for key, value in schema.items():
        _shown(key, told)
        if key in _NAMES and isinstance(value, dict):
            made[key] = {_shown(name, told): _shown(each, told) for name, each in value.items()}
        elif key in _WORDS and isinstance(value, str):
            made[key] = unmarked(value)
        elif key in ("$ref", "$dynamicRef") and not str(value).startswith("#"):
            raise SpecError(f"{told} has a schema that refers to {str(value)[:80]!r}; only to itself it may")
        elif key in ("$id", "patternProperties"):
            raise SpecError(f"{told} has {key!r} in its schema, which is not read here")
        else:
            made[key] = _shown(value, told)
    return made
