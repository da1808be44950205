"""Turn pydantic's findings into problems that name the key, the reason and the nearest right name."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from posttrain.config.base import PATTERNS, MisfitError, Section
from posttrain.config.document import Document, Key, entry_name, key_text
from posttrain.config.errors import ConfigError, Problem
from posttrain.config.foreign_names import FOREIGN_NAMES, LEFT_OUT
from posttrain.config.renamed_keys import RENAMED_KEYS
from posttrain.config.schema import chosen_by, keys_in_use, sections_of, tags_of
from posttrain.files.nearest import did_you_mean, nearest

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
    "finite_number": "should be a finite number",
}


def problems_of(error: ValidationError, document: Document, root: type[Section]) -> ConfigError:
    """Return every finding of a validation as a problem with its place.

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


@dataclass(frozen=True)
class _Place:
    """Where a finding is.

    Attributes:
        key: Its key path, without the tags of unions that pydantic puts between.
        around: The section that has the key's last part, or the sections of a union that might.
        inside: The sections that the value itself may be of.
    """

    key: Key
    around: list[type[Section]]
    inside: list[type[Section]]


def _problem(details: ErrorDetails, document: Document, root: type[Section]) -> Problem:
    """Return one finding as a problem."""
    place = _locate(details["loc"], document.data, root)
    key, kind, value = place.key, details["type"], details["input"]
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, MisfitError):
        key = (*key, *parse_key(cause.key))
        return Problem(document.place(key), document.key_text(key), cause.reason, cause.remedy)
    reason, remedy = _reason(details), ""
    if kind == "extra_forbidden":
        remedy = _named_entry(key, document.data) or _right_name(str(key[-1]), place, document.data, root)
    elif kind == "missing":
        remedy = _description(str(key[-1]), place.around)
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_tag(details, place, document)
    else:
        reason = f"{reason}, not {_shown(value)}"
        remedy = _better_value(value, details)
    return Problem(document.place(key), document.key_text(key), reason, remedy)


def _locate(loc: tuple[int | str, ...], data: object, root: type[Section]) -> _Place:
    """Follow pydantic's location through the data and the sections."""
    key: list[int | str] = []
    sections, around = [root], [root]
    for number, part in enumerate(loc):
        if isinstance(data, dict) and (
            tagged := [s for s in chosen_by(data, sections) if part in tags_of([s])]
        ):
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
                sections = [inner for info in fields for inner in sections_of(info.annotation)]
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return _Place(tuple(key), around, sections)


def _right_name(wrong: str, place: _Place, data: object, root: type[Section]) -> str:
    """Return what an unknown key should have been called, and where it belongs.

    Only keys are named that the sections at hand have, which are those that tags in the data choose.
    """
    sections = place.around
    inside = _value_at(data, place.key[:-1])
    here = list(dict.fromkeys(key for each in sections for key in keys_in_use(each, inside)))
    everywhere = list(dict.fromkeys(keys_in_use(root, _without_other_stages(place.key, data))))
    if new := _new_name(wrong, here):
        return new
    leaves = {key.rpartition(".")[2]: key for key in reversed(here)}
    foreign = FOREIGN_NAMES.get(wrong, "")
    if wrong in leaves:
        return f"it belongs in {leaves[wrong]}"
    if foreign in leaves:
        return f"it is called {leaves[foreign]} ({wrong} elsewhere)"
    if wrong in LEFT_OUT:
        return LEFT_OUT[wrong]
    own = [key for section in sections for key in section.model_fields]
    if near := nearest(wrong, own) or nearest(wrong, leaves):
        return f"did you mean {leaves.get(near, near)}?"
    known = f"known here: {', '.join(dict.fromkeys(own))}"
    stages = bool(set(sections) & set(_stage_kinds(root)))
    if stages and (others := _kinds_with(wrong, root)):
        return f"only {' and '.join(others)} stages have it; {known}"
    if new := _new_name(wrong, everywhere):
        return new
    for candidate in filter(None, (wrong, foreign)):
        if found := next((key for key in everywhere if key.rpartition(".")[2] == candidate), None):
            return f"it belongs in {found}"
        if others := _kinds_with(candidate, root):
            called = f"it is called {candidate}, and " if candidate != wrong else ""
            return f"{called}only {' and '.join(others)} stages have it; {known}"
    return known


def _without_other_stages(key: Key, data: object) -> object:
    """Return a run's data with that stage alone in which a key stands: others' keys are no place for it."""
    match key:
        case ("stages", int(number), *_) if isinstance(data, dict):
            return data | {"stages": data["stages"][number : number + 1]}
    return data


def _value_at(data: object, key: Key) -> object:
    """Return what stands at a key path; None if there is nothing."""
    for part in key:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _new_name(old: str, keys: Sequence[str]) -> str:
    """Return what a key of an earlier version is called now, if that is among some keys; else "".

    Inside of the section that has it now, the last part of the new name is enough.
    """
    new = RENAMED_KEYS.get(old, "")
    if " " in new:
        return new
    ending = "." + new
    found = next((key for key in keys if new and f".{key}".replace("[]", "").endswith(ending)), None)
    found = found or next((key for key in keys if key == new.rpartition(".")[2]), None)
    return f"it is called {found} now" if found else ""


def _stage_kinds(root: type[Section]) -> list[type[Section]]:
    """Return the sections of all kinds of stages."""
    info = root.model_fields.get("stages")
    return list(sections_of(info.annotation)) if info else []


def _kinds_with(key: str, root: type[Section]) -> list[str]:
    """Return the kinds of stages that have a key of their own."""
    return tags_of([kind for kind in _stage_kinds(root) if key in kind.model_fields])


def _named_entry(key: Key, data: dict) -> str:
    """Return where the entry of a list is that a key names as if it were one: `sft.max_steps=10`."""
    for part in key[:-1]:
        data = data[part]
    lists = {name: value for name, value in data.items() if isinstance(value, list)}
    found = next(
        (n for n, entries in lists.items() if key[-1] in [entry_name(each) for each in entries]), None
    )
    return "" if found is None else f"did you mean {key_text((*key[:-1], found, key[-1]))}?"


def _description(name: str, sections: list[type[Section]]) -> str:
    """Return what a key means, from the section that has it."""
    info = next((section.model_fields[name] for section in sections if name in section.model_fields), None)
    return (info.description or "") if info else ""


def _wrong_tag(details: ErrorDetails, place: _Place, document: Document) -> Problem:
    """Return the problem of an entry whose `stage:`, `name:` or `filter:` is missing or unknown."""
    context = details.get("ctx", {})
    key = (*place.key, str(context.get("discriminator", "")).strip("'"))
    choices = tags_of(place.inside)
    remedy = f"choose {_either(choices)}"
    if details["type"] == "union_tag_not_found":
        reason = "is required"
    else:
        reason = f"{context['tag']!r} is none of {', '.join(choices)}"
        remedy = did_you_mean(str(context["tag"]), choices) or remedy
    return Problem(document.place(key), document.key_text(key), reason, remedy)


def _either(choices: Sequence[str]) -> str:
    """Return choices as a sentence has them: `a, b or c`."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), *choices[-1:])))


def _better_value(value: object, details: ErrorDetails) -> str:
    """Return a remedy for a value of the wrong kind, where there is an obvious one."""
    if details["type"] == "literal_error":
        choices = str(details.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
        return did_you_mean(str(value), [choice.strip("'") for choice in choices])
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


def _reason(details: ErrorDetails) -> str:
    """Return what is wrong; in pydantic's words, 'should be greater than 0', where there are no better."""
    if details["type"] == "string_pattern_mismatch":
        pattern = details.get("ctx", {}).get("pattern", "")
        _, meaning = PATTERNS.get(pattern, ("", f"of the form {pattern}"))
        return f"should be {meaning}"
    plain = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return _REASONS.get(details["type"], plain)


def _shown(value: object) -> str:
    """Return a value as Python writes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def parse_key(key: str) -> Key:
    """Split a key path: `stages[1].name` → ("stages", 1, "name")."""
    parts = key.replace("[", ".").replace("]", "").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts)
