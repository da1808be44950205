"""Turn pydantic's findings into problems that name the key, the reason and the nearest right name."""

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from posttrain.config.base import MisfitError, Section
from posttrain.config.document import Document, Key, entry_name, key_text
from posttrain.config.errors import ConfigError, Problem
from posttrain.config.foreign_names import FOREIGN_NAMES, LEFT_OUT

_REASONS = {
    "missing": "is required",
    "extra_forbidden": "unknown key",
    "model_type": "should be a mapping of keys to values",
    "dict_type": "should be a mapping of keys to values",
    "model_attributes_type": "should be a mapping of keys to values",
    "list_type": "should be a list",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "string_type": "should be text",
    "string_pattern_mismatch": "should be up to 64 letters, digits, '.', '_' and '-', no mark first",
    "finite_number": "should be a finite number",
}


def explain(error: ValidationError, document: Document, root: type[Section]) -> ConfigError:
    """Every finding of a validation as a problem with its place.

    Args:
        error: What pydantic raised.
        document: The data that were validated.
        root: The section that they were validated against.
    """
    findings = [
        details
        for details in error.errors(include_url=False)
        if details["type"] != "default_factory_not_called"  # follows from another finding
    ]
    problems = [_problem(details, document, root) for details in findings]
    return ConfigError(list(dict.fromkeys(problems)))


def _problem(details: ErrorDetails, document: Document, root: type[Section]) -> Problem:
    key, sections = _locate(details["loc"], document.data, root)
    kind, value = details["type"], details["input"]
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, MisfitError):
        key = (*key, *_parse_key(cause.key))
        return Problem(document.place(key), key_text(key), cause.reason, cause.remedy)
    reason, remedy = _REASONS.get(kind, _plain(details["msg"])), ""
    if kind == "extra_forbidden":
        remedy = _named_entry(key, document.data) or _right_name(str(key[-1]), sections, root)
    elif kind == "missing":
        remedy = _description(str(key[-1]), sections)
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_tag(details, key, document)
    else:
        reason = f"{reason}, not {_shown(value)}"
        remedy = _mend(value, details)
    return Problem(document.place(key), key_text(key), reason, remedy)


def _locate(loc: tuple[int | str, ...], data: Any, root: type[Section]) -> tuple[Key, list[type[Section]]]:
    """The key path without the tags of unions that pydantic puts between, and the section it ends in."""
    key: list[int | str] = []
    sections, around = [root], [root]
    for number, part in enumerate(loc):
        tagged = [section for section in sections if isinstance(part, str) and part in _tags(section)]
        if tagged and isinstance(data, dict) and part in [data.get(k) for k in ("stage", "name", "filter")]:
            sections = around = tagged
            continue
        if isinstance(part, str) and part.startswith(("list[", "literal[", "constrained-")) and number:
            continue
        if named := [section for section in sections if section.__name__ == part]:
            sections = around = named
            continue
        key.append(part)
        if isinstance(data, dict):
            around = sections
            fields = [section.model_fields[str(part)] for section in sections if part in section.model_fields]
            if fields or number + 1 == len(loc):  # else a name in a mapping of sections
                sections = [inner for info in fields for inner in _sections(info.annotation)]
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return tuple(key), around


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a field's type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _tags(section: type[Section]) -> tuple[Any, ...]:
    """What `stage:`, `name:` or `filter:` may say to choose this section of a union."""
    return tuple(
        value
        for field in ("stage", "name", "filter")
        if field in section.model_fields
        for value in get_args(section.model_fields[field].annotation)
    )


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Every key of a section and of those inside it, as dotted paths; nearer ones first."""
    yield from (prefix + name for name in section.model_fields)
    for name, info in section.model_fields.items():
        inside = "[]" if "list[" in str(info.annotation) else ""
        for inner in _sections(info.annotation):
            yield from _keys(inner, f"{prefix}{name}{inside}.")


def _right_name(wrong: str, sections: list[type[Section]], root: type[Section]) -> str:
    """What an unknown key should have been called, and where it belongs."""
    here = [key for section in sections for key in _keys(section)]
    everywhere = list(_keys(root))
    leaves = {key.rpartition(".")[2]: key for key in reversed(here)}
    for candidate, origin in ((wrong, ""), (FOREIGN_NAMES.get(wrong, ""), f" ({wrong} elsewhere)")):
        if candidate in leaves:
            return (
                f"it is called {leaves[candidate]}{origin}"
                if origin
                else f"it belongs in {leaves[candidate]}"
            )
    if wrong in LEFT_OUT:
        return LEFT_OUT[wrong]
    own = [key for section in sections for key in section.model_fields]
    if near := difflib.get_close_matches(wrong, own, n=1) or difflib.get_close_matches(wrong, leaves, n=1):
        return f"did you mean {leaves.get(near[0], near[0])}?"
    known = f"known here: {', '.join(dict.fromkeys(own))}"
    if "stage" in own and (
        others := [tag for s in _stages(root) if wrong in s.model_fields for tag in _tags(s)]
    ):
        return f"only {' and '.join(others)} stages have it; {known}"
    for candidate in (wrong, FOREIGN_NAMES.get(wrong, "")):
        if found := next((key for key in everywhere if key.rpartition(".")[2] == candidate), None):
            return f"it belongs in {found}"
    return known


def _stages(root: type[Section]) -> list[type[Section]]:
    """The kinds of stages that a run may have."""
    info = root.model_fields.get("stages")
    return list(_sections(info.annotation)) if info else []


def _named_entry(key: Key, data: Any) -> str:
    """Where the entry of a list is that a key names as if it were one: `sft.max_steps=10`."""
    for part in key[:-1]:
        data = data[part]
    lists = {name: value for name, value in data.items() if isinstance(value, list)}
    found = next(
        (n for n, entries in lists.items() if key[-1] in [entry_name(each) for each in entries]), None
    )
    return "" if found is None else f"did you mean {key_text((*key[:-1], found, key[-1]))}?"


def _description(name: str, sections: list[type[Section]]) -> str:
    info = next((section.model_fields[name] for section in sections if name in section.model_fields), None)
    return (info.description or "") if info else ""


def _wrong_tag(details: ErrorDetails, key: Key, document: Document) -> Problem:
    """An entry whose `stage:`, `name:` or `filter:` is missing or unknown."""
    context = details.get("ctx", {})
    field = str(context.get("discriminator", "")).strip("'")
    if details["type"] == "union_tag_not_found":
        choices = {
            "stage": "tiny_model, sft, distillation, dpo or rl",
            "name": "sapo, grpo or gspo",
            "filter": "one, such as query, reward or pass_rate",
        }.get(field, "")
        reason, remedy = "is required", f"choose {choices}"
    else:
        key = (*key, field)
        choices = [choice.strip("' ") for choice in str(context["expected_tags"]).split(",")]
        near = difflib.get_close_matches(str(context["tag"]), choices, n=1)
        reason = f"{context['tag']!r} is none of {', '.join(choices)}"
        remedy = f"did you mean {near[0]}?" if near else f"choose {' or '.join(choices)}"
        return Problem(document.place(key), key_text(key), reason, remedy)
    return Problem(document.place(key), key_text((*key, field)), reason, remedy)


def _mend(value: Any, details: ErrorDetails) -> str:
    """A remedy for a value of the wrong kind, where there is an obvious one."""
    if details["type"] == "literal_error":
        choices = str(details.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
        near = difflib.get_close_matches(str(value), [choice.strip("'") for choice in choices], n=1)
        return f"did you mean {near[0]}?" if near else ""
    if isinstance(value, str) and details["type"] in ("int_type", "float_type", "bool_type"):
        bare = value.replace("_", "").replace(",", "").strip()
        if details["type"] == "bool_type":
            return (
                "write true or false" if bare.lower() in ("yes", "no", "on", "off", "true", "false") else ""
            )
        try:
            float(bare)
        except ValueError:
            return ""
        return f"write {bare}, without quotes or separators"
    return ""


def _plain(message: str) -> str:
    """Pydantic's words, in the tone of the others: 'should be greater than 0'."""
    return message.removeprefix("Input ").removeprefix("Value error, ")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _parse_key(key: str) -> Key:
    """`stages[1].name` → ("stages", 1, "name")."""
    parts = key.replace("[", ".").replace("]", "").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts)
