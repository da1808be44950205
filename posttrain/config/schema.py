"""What sections say of themselves: their fields' types, the sections inside them, and the tags of unions.

Messages about wrong keys, the reference of all keys and the anchoring of paths all read these, so that a
section and its fields are described in one place, their definition.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from posttrain.config.base import Section


def sections_of(annotation: object) -> Iterator[type[Section]]:
    """Yield the sections that a field's type mentions, in lists, mappings and unions as well."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_of(argument)


def tag_of(section: type[Section]) -> tuple[str, str] | None:
    """Return the field and the value by which a section is chosen in a union; None if it has none.

    Example:
        tag_of(SftStage)  # ("stage", "sft")
    """
    for name, info in section.model_fields.items():
        if info.is_required() and get_origin(info.annotation) is Literal:
            return name, str(get_args(info.annotation)[0])
    return None


def tags_of(sections: Sequence[type[Section]]) -> list[str]:
    """Return what may stand in the field that chooses among sections."""
    return [tag[1] for section in sections if (tag := tag_of(section)) is not None]


def chosen_by(data: dict[str, object], sections: Sequence[type[Section]]) -> list[type[Section]]:
    """Return those of the sections of a union that the tag in some data chooses; none without a tag."""
    return [section for section in sections if (tag := tag_of(section)) and data.get(tag[0]) == tag[1]]


def is_list(info: FieldInfo) -> bool:
    """Tell whether a field holds a list of what it mentions."""
    return "list[" in str(info.annotation)


def keys_in_use(section: type[Section], data: object, prefix: str = "") -> Iterator[str]:
    """Yield the keys that a section and those inside it have, given its data; nearer ones first.

    Of a union only the sections count that tags in the data choose, or that have no tag.

    Example:
        "stages", …, "stages[].learning_rate" of the kinds of stages that are there
    """
    yield from (prefix + name for name in section.model_fields)
    for name, info in section.model_fields.items():
        value = data.get(name) if isinstance(data, dict) else None
        inside = "[]" if is_list(info) else ""
        inner = list(sections_of(info.annotation))
        for entry in value if isinstance(value, list) else [value]:
            chosen = chosen_by(entry, inner) if isinstance(entry, dict) else []
            for each in chosen or [one for one in inner if tag_of(one) is None]:
                yield from keys_in_use(each, entry, f"{prefix}{name}{inside}.")
