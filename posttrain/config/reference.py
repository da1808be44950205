"""The reference of every key: its type, bounds, default and meaning, read from the sections themselves.

`posttrain explain` prints it. Nothing is written here of any one key, so that a new section, kind of stage or
filter is in the reference as soon as its class is.
"""

import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from posttrain.config.base import PATTERNS, Section
from posttrain.config.curation import CurationConfig
from posttrain.config.data import DatasetConfig
from posttrain.config.errors import ConfigError, Problem
from posttrain.config.foreign_names import FOREIGN_NAMES, LEFT_OUT
from posttrain.config.learning import LearningStage
from posttrain.config.renamed_keys import RENAMED_KEYS
from posttrain.config.run import RunConfig
from posttrain.config.schema import sections_of, tag_of
from posttrain.files.nearest import did_you_mean

#: What may be written, by the first word of its keys' paths; that of a run's keys is left out.
FILES: dict[str, tuple[type[Section], str]] = {
    "run": (RunConfig, "a run: what `posttrain run` and `posttrain validate` take"),
    "dataset": (DatasetConfig, "a dataset: a file of datasets_cfg/"),
    "curation": (CurationConfig, "a curation: what `posttrain data curate` takes"),
}
_SIMPLE = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
#: Stands in a path for a name that the writer of the file chooses.
ANY_NAME = "<name>"

#: In place of the type of a key that a kind of stage does not obey.
NOT_TAKEN = "not taken here"


@dataclass(frozen=True)
class Entry:
    """A key of a file, or one variant of a section that comes in several.

    Attributes:
        path: The keys that lead to it. The tag of a variant stands among them, as in `stages.rl.algorithm`.
        may_lack: Places in the path that need not be written to name it: tags, and names one chooses.
        choice: What chooses a variant, such as `stage: rl`; "" for a key.
        kind: Its type and bounds.
        default: Its default as YAML; None where it has to be written.
        description: What it means.
        sections: The sections that its value may be.
        children: Its keys, or its variants.
    """

    path: tuple[str, ...]
    may_lack: frozenset[int]
    choice: str
    kind: str
    default: str | None
    description: str
    sections: tuple[type[Section], ...]
    children: tuple["Entry", ...]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path[-1]

    @property
    def text(self) -> str:
        """The path as people write it."""
        return ".".join(self.path[1:] if self.path[0] == "run" and self.path[1:] else self.path)

    def matches(self, words: Sequence[str]) -> bool:
        """Tell whether some words are the end of the path; what may lack may lack."""
        return self._unmatched(words) is not None

    def is_exactly(self, words: Sequence[str]) -> bool:
        """Tell whether some words are the whole path; what may lack may lack."""
        left = self._unmatched(words)
        return left is not None and all(place in self.may_lack for place in range(left))

    def _unmatched(self, words: Sequence[str]) -> int | None:
        """Return how many parts of the path the words leave at its beginning; None if they do not fit."""
        place = len(self.path)
        for word in reversed(words):
            place -= 1
            while place >= 0 and self.path[place] != word:
                if place not in self.may_lack or place == len(self.path) - 1:
                    return None
                place -= 1
            if place < 0:
                return None
        return place

    def walk(self) -> Iterator["Entry"]:
        """Yield the entry and all within it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Found:
    """What there is to say of a key.

    Attributes:
        groups: The places that have it; those where it means the same together.
        elsewhere: More places whose path ends in the same words.
        note: What the words that were asked for have to do with the key, where they are not its name.
    """

    groups: list[list[Entry]]
    elsewhere: list[Entry]
    note: str = ""


@functools.cache
def reference() -> dict[str, Entry]:
    """Return all entries, by what may be written: a run, a dataset, a curation."""
    entries = {}
    for word, (section, description) in FILES.items():
        entry = Entry((word,), frozenset(), "", "section", None, description, (section,), ())
        entries[word] = replace(entry, children=_keys(section, (word,), frozenset([0] * (word == "run"))))
    return entries


def look_up(key: str) -> Found:
    """Find what a key means, wherever it is.

    Args:
        key: A path such as `stages.rl.algorithm`, or its end: `learning_rate`. Numbers of list entries and
            the tags of variants may be left out. Words of other toolkits lead to the key of ours.

    Raises:
        ConfigError: If there is no such key, with the nearest right one.

    Example:
        look_up("tau_pos").groups[0][0].default  # "1.0"
    """
    everything = [entry for root in reference().values() for entry in root.walk()]
    parts = key.replace("[", ".").replace("]", "").split(".")
    words = [word for word in parts if word and not word.isdigit()]
    if words and (found := _find(words, everything)):
        return found
    last = words[-1] if words else ""
    new = RENAMED_KEYS.get(last, "")
    if " " not in new and new and (found := _find(new.split("."), everything)):
        return replace(found, note=f"{last} is called {new} now")
    if (ours := FOREIGN_NAMES.get(last)) and (found := _find([ours], everything)):
        return replace(found, note=f"what is called {last} elsewhere is called {ours} here")
    hint = new or LEFT_OUT.get(last) or _nearest_key(words, everything)
    raise ConfigError([Problem(key, "", "there is no such key", hint or "`posttrain explain` lists all")])


def _find(words: Sequence[str], everything: Sequence[Entry]) -> Found | None:
    """Return the entries whose path some words are, or else end in; None if there are none."""
    ending = [entry for entry in everything if entry.matches(words)]
    exact = [entry for entry in ending if entry.is_exactly(words)]
    if not ending:
        return None
    groups: dict[object, list[Entry]] = {}
    for entry in exact or ending:
        meaning = (entry.choice, entry.kind, entry.default, entry.description, entry.sections)
        groups.setdefault(meaning, []).append(entry)
    return Found(list(groups.values()), [entry for entry in ending if exact and entry not in exact])


def _nearest_key(words: Sequence[str], everything: Sequence[Entry]) -> str:
    """Return `did you mean …?` with the path that is most like some words, or the last part of one."""
    dotted = {entry.text for entry in everything}
    dotted |= {".".join(p for n, p in enumerate(e.path) if n not in e.may_lack) for e in everything}
    return did_you_mean(".".join(words), dotted) or did_you_mean(
        words[-1] if words else "", {entry.name for entry in everything}
    )


def _keys(section: type[Section], path: tuple[str, ...], may_lack: frozenset[int]) -> tuple[Entry, ...]:
    """Return the entries of a section's keys, that which chooses it in a union first.

    A key that this kind of section does not obey has the reason in place of its meaning.
    """
    first, _ = tag_of(section) or ("", "")
    refused = section.unsupported if issubclass(section, LearningStage) else {}
    fields = sorted(section.model_fields.items(), key=lambda field: field[0] != first)
    return tuple(
        Entry((*path, name), may_lack, "", NOT_TAKEN, None, "; ".join(refused[name]) + ".", (), ())
        if name in refused
        else _key(name, info, path, may_lack)
        for name, info in fields
    )


def _key(name: str, info: FieldInfo, path: tuple[str, ...], may_lack: frozenset[int]) -> Entry:
    """Return the entry of one key, with all within it."""
    own = (*path, name)
    sections = tuple(dict.fromkeys(sections_of(info.annotation)))
    inside, lacking = own, may_lack
    if sections and _is_mapping(info.annotation):
        inside, lacking = (*own, ANY_NAME), may_lack | {len(own)}
    if len(sections) == 1:
        children = _keys(sections[0], inside, lacking)
    else:
        children = tuple(_variant(section, inside, lacking) for section in sections)
    kind = _kind(info.annotation, info.metadata)
    return Entry(own, may_lack, "", kind, _default(info), info.description or "", sections, children)


def _variant(section: type[Section], path: tuple[str, ...], may_lack: frozenset[int]) -> Entry:
    """Return the entry of one of the sections that a key's value may be."""
    field, tag = tag_of(section) or ("", section.__name__.removesuffix("Config").lower())
    own, lacking = (*path, tag), may_lack | {len(path)}
    choice = f"{field}: {tag}" if field else f"one with {' and '.join(_required(section))}"
    children = _keys(section, own, lacking)
    return Entry(own, lacking, choice, "section", None, section.__doc__ or "", (section,), children)


def _required(section: type[Section]) -> list[str]:
    """Return the keys that a section must have."""
    return [name for name, info in section.model_fields.items() if info.is_required()]


def _is_mapping(annotation: object) -> bool:
    """Tell whether a type is a mapping, or may be one."""
    return get_origin(annotation) is dict or any(get_origin(each) is dict for each in get_args(annotation))


def _kind(annotation: object, metadata: Sequence[object] = (), inner: bool = False) -> str:
    """Return a type in words, with its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], [*arguments[1:], *metadata], inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if arguments[1:] else f"the word {arguments[0]}"
    if origin in (Union, types.UnionType):
        kinds = [_kind(each, metadata, inner) for each in arguments if each is not type(None)]
        return " or ".join(dict.fromkeys([*kinds, *["null"] * (inner and len(kinds) < len(arguments))]))
    bounds = _bounds(metadata)
    if origin is list:
        word, bound = f"list of {_plural(_kind(arguments[0], inner=True))}", bounds.get("min_length")
    elif origin is dict:
        word, bound = f"mapping of names to {_kind(arguments[1], inner=True)}", bounds.get("min_length")
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    else:
        return _scalar(annotation, bounds)
    return word + (f" (at least {bound})" if bound else "")


def _scalar(annotation: object, bounds: Mapping[str, object]) -> str:
    """Return the type of a single value in words, with its bounds."""
    word = next((text for each, text in _SIMPLE.items() if each is annotation), "anything")
    if (pattern := bounds.get("pattern")) is not None:
        return PATTERNS.get(str(pattern), (f"{word} of the form {pattern}", ""))[0]
    limits = [f"{sign} {bounds[key]:g}" for key, sign in _BOUNDS.items() if bounds.get(key) is not None]
    return f"{word} {' and '.join(limits)}".rstrip()


def _bounds(metadata: Sequence[object]) -> dict[str, float | str]:
    """Return the bounds that a type's metadata set, by pydantic's names for them."""
    bounds: dict[str, float | str] = {}
    for each in metadata:
        if isinstance(each, FieldInfo):
            bounds |= _bounds(each.metadata)
        for key in (*_BOUNDS, "min_length", "pattern"):
            if getattr(each, key, None) is not None:
                bounds[key] = getattr(each, key)
    return bounds


def _plural(kind: str) -> str:
    """Return the words of a type for several values of it."""
    words = ("text", "name", "number", "whole number", "section")
    word = next((word for word in words if kind.startswith(word)), "")
    return f"{word}{'s' * bool(word)}{kind.removeprefix(word)}"


def _default(info: FieldInfo) -> str | None:
    """Return a key's default as YAML, or in words; None if it has to be written."""
    if info.is_required():
        return None
    if info.default_factory_takes_validated_data:
        return "computed"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
        if not value:
            return "its keys' own"
    if value in (None, "", [], {}):
        return "absent"
    if isinstance(value, list):
        value = [e.model_dump(exclude_defaults=True) if isinstance(e, BaseModel) else e for e in value]
    if isinstance(value, float):
        return f"{value:g}"
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
