"""YAML with a memory: plain data, and for every key the file and line that it came from.

The dialect is YAML 1.2's core schema, so that `1e-4` is a number, `no` a word and `1:30` no
sexagesimal. Nothing in a file can run code, and nothing small expands into something large.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain.config.errors import ConfigError, Problem
from posttrain.files.nearest import did_you_mean

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 20_000

Key = tuple[str | int, ...]

_NULL = ("", "~", "null", "Null", "NULL")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,400}")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


class _Loader(yaml.SafeLoader):
    """A loader that resolves no scalars, so that this module alone says what a plain word means."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012


@dataclass
class Document:
    """Data, and where each part of it was written.

    Attributes:
        data: Mappings, lists and scalars.
        places: `file:line` by key path.
        label: What the document is called in messages.
        copied: By the number of a stage, that of the stage which it was made from (see `comparison`).
    """

    data: Any
    label: str
    places: dict[Key, str] = field(default_factory=dict)
    copied: dict[int, int] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """Return `file:line` of a key, or of the nearest key around it."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.places:
                return self.places[key[:length]]
        return self.label

    def key_text(self, key: Key) -> str:
        """Write a key path as the file has it, in which a stage that was copied stands once."""
        match key:
            case ("stages", int(number), *rest):
                return key_text(("stages", self.copied.get(number, number), *rest))
        return key_text(key)

    def error(self, key: Key, reason: str, remedy: str = "") -> ConfigError:
        """Return a single problem as an error."""
        return ConfigError([Problem(self.place(key), key_text(key), reason, remedy)])


def key_text(key: Iterable[str | int]) -> str:
    """Write a key path as people do: `stages[1].learning_rate`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        ConfigError: If it is no regular file, is too large, or is not plain YAML.
    """
    label = str(path)
    try:
        if not path.is_file():
            near = did_you_mean(path.name, (other.name for other in path.parent.glob("*.y*ml")))
            raise Document(None, label).error((), "there is no such file", near)
        if path.stat().st_size > MAX_BYTES:
            raise Document(None, label).error(
                (), f"a config of more than {MAX_BYTES // 2**20} MiB is refused"
            )
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Document(None, label).error((), "not UTF-8 text", "save it as UTF-8") from error
    except OSError as error:
        raise Document(None, label).error((), f"cannot be read ({error.strerror})") from error
    return parse_document(text, label)


def parse_document(text: str, label: str) -> Document:
    """Parse YAML text; `label` stands for the file in messages.

    Raises:
        ConfigError: If it is not plain YAML: syntax errors, duplicate keys, tags, or aliases that
            expand without measure.
    """
    document = Document(None, label)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Document(None, f"{label}:{line}").error((), f"not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise document.error((), f"not YAML: {error}") from error
    except RecursionError as error:
        raise document.error((), f"nested deeper than {MAX_DEPTH} levels") from error
    if root is not None:
        document.data = _Builder(document).build(root, ())
    return document


class _Builder:
    """A builder of data from YAML nodes; it counts them, so that aliases cannot multiply without end."""

    def __init__(self, document: Document):
        self.document = document
        self.nodes = 0

    def build(self, node: yaml.Node, key: Key) -> object:
        self.nodes += 1
        self.document.places.setdefault(key, f"{self.document.label}:{node.start_mark.line + 1}")
        if self.nodes > MAX_NODES:
            raise self.document.error((), f"more than {MAX_NODES} values, aliases counted", "split it up")
        if len(key) > MAX_DEPTH:
            raise self.document.error((), f"nested deeper than {MAX_DEPTH} levels")
        kind = node.tag.rpartition(":")[2]
        if not node.tag.startswith("tag:yaml.org,2002:") or kind not in ("str", "seq", "map"):
            raise self.document.error(key, f"the tag {node.tag!r} is refused", "write plain values")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*key, index)) for index, child in enumerate(node.value)]
        unquoted = isinstance(node, yaml.ScalarNode) and node.style is None
        return parse_scalar(node.value) if unquoted else node.value

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, object]:
        result: dict[str, object] = {}
        for name_node, child in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                raise self.document.error(
                    key, "a key must be a word", "quote it if it has special characters"
                )
            name = name_node.value
            place = f"{self.document.label}:{name_node.start_mark.line + 1}"
            if name in result:
                first = self.document.place((*key, name))
                raise ConfigError(
                    [Problem(place, key_text((*key, name)), f"duplicate key, first in {first}", "remove one")]
                )
            self.document.places[(*key, name)] = place
            result[name] = self.build(child, (*key, name))
        return result


def parse_scalar(text: str) -> str | int | float | bool | None:
    """Return what an unquoted word means in YAML 1.2's core schema."""
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def merge(base: Document, layer: Document) -> Document:
    """Lay one document over another.

    Mappings merge key by key, a mapping over a list changes the entries that it names (by `name`,
    `stage` or `data`, or by number) and removes those that it sets to null, and everything else replaces
    what was there.

    Raises:
        ConfigError: If a mapping over a list names an entry that does not exist.
    """
    result = Document(None, layer.label, dict(base.places))
    result.data = _merge(base.data, layer.data, (), (), layer, result)
    return result


def _merge(old: object, new: object, old_key: Key, new_key: Key, layer: Document, result: Document) -> object:
    """Merge at one key; keys of a layer differ from the result's where it names list entries."""
    if isinstance(new, dict) and isinstance(old, dict):
        merged = dict(old)
        for name, value in new.items():
            keys = (*old_key, name), (*new_key, name)
            merged[name] = _merge(old.get(name), value, *keys, layer, result)
        return merged
    if isinstance(new, dict) and isinstance(old, list):
        entries = list(old)
        removed: set[int] = set()
        for name, value in new.items():
            index = _entry(old, name, (*new_key, name), layer)
            if value is None:
                removed.add(index)
                continue
            keys = (*old_key, index), (*new_key, name)
            # A plugin may be listed by its bare name.
            entry = {"name": old[index]} if isinstance(old[index], str) else old[index]
            entries[index] = _merge(entry, value, *keys, layer, result)
        _forget(removed, old_key, result)
        return [entry for index, entry in enumerate(entries) if index not in removed]
    for key in [key for key in result.places if key[: len(old_key)] == old_key and key]:
        del result.places[key]
    for key, place in layer.places.items():
        if key[: len(new_key)] == new_key:
            result.places[old_key + key[len(new_key) :]] = place
    return new


def _forget(removed: set[int], key: Key, result: Document) -> None:
    """Drop the places of a list's removed entries, and renumber those of the entries after them."""
    length = len(key)
    places, result.places = result.places, {}
    for old, place in places.items():
        index = old[length] if old[:length] == key and len(old) > length else None
        if not isinstance(index, int):
            result.places[old] = place
        elif index not in removed:
            shift = sum(other < index for other in removed)
            result.places[(*key, index - shift, *old[length + 1 :])] = place


def _entry(entries: list, name: str, key: Key, layer: Document) -> int:
    """Return the index of a list's entry by its name or number."""
    names = [entry_name(entry) for entry in entries]
    if name in names:
        return names.index(name)
    if name.isascii() and name.isdigit() and int(name) < len(entries):
        return int(name)
    known = ", ".join(filter(None, names)) or "none"
    raise layer.error(
        key, "there is no such entry to change", did_you_mean(name, names) or f"its entries are {known}"
    )


def entry_name(entry: object) -> str:
    """Return what a list's entry is called in overrides; "" if it has no name."""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("name", "stage", "data") if key in entry), "")
    return entry if isinstance(entry, str) else ""
