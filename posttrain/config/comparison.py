"""Comparisons: a stage whose `vary` lists values becomes a stage for each combination of them.

    - stage: rl
      vary:
        seed: [0, 1, 2]
        rollout: {max_staleness: [0, 2]}
        algorithm: {name: [sapo, grpo]}

makes 12 stages, the cells, named `rl-seed0-max_staleness0-sapo` and so on. All start from the checkpoint that
the one stage would have started from. Each is an ordinary stage: measured, resumed, checked like any other.
This happens to a file's data, before they are checked, so that `base:` and overrides change what is varied.

`variants` are stages that differ in more than one value, such as tasks or the stage that they start from:

      vary:
        seed: [0, 1, 2]
        variants:
          - {name: as_it_is}
          - {name: without_target, tasks: [{name: untargeted, data: looks_train, rewards: [answer_accuracy]}]}
"""

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from posttrain.config.document import Document, Key, entry_name, key_text

VARY, CELL = "vary", "cell"
#: Most stages that one may become.
MAX_CELLS = 256
MAX_NAME = 64
#: What every cell has in common, or of its own.
FIXED = ("stage", "name", "start_from", "metric", "tasks", VARY, CELL)
#: Named sets of keys that are compared; each may have some of those that cannot be varied by themselves.
VARIANTS, VARIANT = "variants", "variant"
OF_A_VARIANT = ("name", "start_from", "tasks")


@dataclass(frozen=True)
class Dimension:
    """A setting that is varied.

    Attributes:
        key: Its path from the stage.
        values: What it takes.
    """

    key: Key
    values: Sequence[object]


def expand(document: Document) -> Document:
    """Return a run's data with every stage that varies settings replaced by its cells.

    Raises:
        ConfigError: If a `vary` is no mapping of keys to lists, or makes nothing that can be compared.
    """
    stages = document.data.get("stages")
    if not isinstance(stages, list) or not any(isinstance(each, dict) and VARY in each for each in stages):
        return document
    places = {key: place for key, place in document.places.items() if key[:1] != ("stages",) or not key[1:]}
    result = Document({**document.data, "stages": []}, document.label, places)
    made: dict[str, list[str]] = {}
    for index, stage in enumerate(stages):
        if isinstance(stage, dict) and stage.get(VARY):
            cells = _cells(document, index)
            made[entry_name(stage)] = [str(cell["name"]) for cell in cells]
        else:
            plain = isinstance(stage, dict) and VARY in stage  # what an override took out
            cells = [{key: value for key, value in stage.items() if key != VARY}] if plain else [stage]
            _check_origin(document, index)
        for cell in cells:
            number = len(result.data["stages"])
            result.data["stages"].append(cell)
            result.copied[number] = index
            result.places |= {
                ("stages", number, *key[2:]): place
                for key, place in document.places.items()
                if key[:2] == ("stages", index)
            }
            if isinstance(cell, dict) and CELL in cell and isinstance(stage, dict) and VARY in stage:
                for key in _dimension_keys(stage[VARY]):
                    result.places[("stages", number, *key)] = document.place(("stages", index, VARY, *key))
    if "evaluation" in result.data:
        result.data["evaluation"] = _named_cells(result.data["evaluation"], made)
    return result


def _cells(document: Document, index: int) -> list[dict[str, object]]:
    """Return the stages that one becomes, the last setting changing fastest."""
    stage, at = document.data["stages"][index], ("stages", index, VARY)
    dimensions = list(_dimensions(document, at, stage[VARY], ()))
    count = 1
    for dimension in dimensions:
        count *= len(dimension.values)
    if not 1 < count <= MAX_CELLS:
        sizes = " × ".join(str(len(dimension.values)) for dimension in dimensions)
        product = f"{sizes} = {count}" if len(dimensions) > 1 else f"{count}"
        raise document.error(
            at,
            f"the values make {product} stage{'s' * (count != 1)}, and 2 to {MAX_CELLS} can be compared",
            "list more values" if count < 2 else "list fewer values, or compare in several runs",
        )
    plain = {key: value for key, value in stage.items() if key != VARY}
    name = entry_name(stage)
    cells: list[dict[str, object]] = []
    for values in itertools.product(*(dimension.values for dimension in dimensions)):
        cell = copy.deepcopy(plain)
        settings: dict[str, object] = {}
        for dimension, value in zip(dimensions, values, strict=True):
            if dimension.key == (VARIANTS,):
                settings[VARIANT] = _take_variant(cell, value)
                continue
            _set(cell, dimension.key, value)
            settings[key_text(dimension.key)] = value
        words = [cell_label(key, value) for key, value in settings.items()]
        cell |= {
            "name": "-".join([name, *words]),
            "start_from": cell.get("start_from") or _before(document, index),
            CELL: {"comparison": name, "settings": settings},
        }
        cells.append(cell)
    _check_names(document, at, [str(cell["name"]) for cell in cells])
    return cells


def _dimensions(document: Document, at: Key, node: object, key: Key) -> Iterator[Dimension]:
    """Yield what a `vary` lists, in the order in which it is written."""
    here = (*at, *key)
    if node is None:  # an override took it out
        return
    if isinstance(node, Mapping):
        for name, inner in node.items():
            if not key and name in FIXED:
                remedy = "every cell has it alike; remove it, or write `variants` that have it"
                raise document.error((*at, name), "cannot be varied", remedy)
            if not key and name == VARIANTS and inner is not None:
                _check_variants(document, (*at, name), inner)
            yield from _dimensions(document, at, inner, (*key, name))
        return
    if not isinstance(node, list) or not key:
        raise document.error(here, f"should list the values to compare, not {node!r}", f"write [{node}]")
    if not node:
        raise document.error(here, "lists no value to compare", "list some, or remove it")
    if repeated := next((value for place, value in enumerate(node) if value in node[:place]), None):
        raise document.error(here, f"{repeated!r} is listed twice", "list it once")
    yield Dimension(key, node)


def _check_variants(document: Document, at: Key, node: object) -> None:
    """Refuse variants that have no name, or keys that a cell cannot have of its own."""
    if not isinstance(node, list):
        raise document.error(at, f"should list variants, not {node!r}", "write [{name: …, …}, …]")
    for number, variant in enumerate(node):
        here = (*at, number)
        if not isinstance(variant, Mapping) or not isinstance(variant.get("name"), str):
            raise document.error(here, f"{variant!r} has no name", "write {name: …} and the keys that differ")
        for key in variant:
            if key in FIXED and key not in OF_A_VARIANT:
                raise document.error((*here, str(key)), "cannot be varied", "remove it")


def _take_variant(cell: dict[str, object], variant: object) -> str:
    """Set the keys of a variant in a cell, and return its name."""
    assert isinstance(variant, Mapping)
    for key, value in variant.items():
        if key != "name":
            _set(cell, (str(key),), value)
    return str(variant["name"])


def _dimension_keys(node: object, key: Key = ()) -> Iterator[Key]:
    if isinstance(node, Mapping):
        for name, inner in node.items():
            yield from _dimension_keys(inner, (*key, name))
    elif node is not None:
        yield key


def _set(section: dict, key: Key, value: object) -> None:
    """Set a key of nested sections; a mapping changes the keys that it names."""
    *path, last = key
    for name in path:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    old = section.get(last)
    value = copy.deepcopy(value)
    section[last] = {**old, **value} if isinstance(value, dict) and isinstance(old, dict) else value


def cell_label(key: str, value: object) -> str:
    """Return how a cell is told from others by one setting, as a part of its name.

    Example:
        cell_label("rollout.max_staleness", 2) == "max_staleness2"
        cell_label("algorithm.name", "sapo") == "sapo"
    """
    last = key.rpartition(".")[2]
    if isinstance(value, Mapping):
        if isinstance(value.get("name"), str):
            return _word(value["name"])
        return "-".join(cell_label(str(name), inner) for name, inner in value.items()) or last
    if value is None or isinstance(value, bool):
        return last if value else f"no_{last}"
    return _word(value) if isinstance(value, str) else _word(f"{last}{value}")


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text).strip("_")


def _check_names(document: Document, at: Key, names: Sequence[str]) -> None:
    """Check that cells can be told apart by names of folders."""
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise document.error(
            at, f"two cells would be called {repeated!r}", "give values that are mappings a `name` each"
        )
    longest = max(names, key=len)
    if len(longest) > MAX_NAME:
        raise document.error(
            at,
            f"the name {longest!r} has {len(longest)} letters, and a stage's at most {MAX_NAME}",
            "give the stage a shorter `name`, or vary fewer settings",
        )


def _before(document: Document, index: int) -> str:
    """Return the name of the stage before, or `base`."""
    return entry_name(document.data["stages"][index - 1]) if index else "base"


def _check_origin(document: Document, index: int) -> None:
    """Refuse a stage that would start from a comparison, which has no one checkpoint."""
    stages = document.data["stages"]
    stage, before = stages[index], stages[index - 1] if index else None
    varies = {entry_name(each): each for each in stages[:index] if isinstance(each, dict) and each.get(VARY)}
    if not isinstance(stage, dict) or not varies:
        return
    start = stage.get("start_from") or entry_name(before)
    if start in varies:
        raise document.error(
            ("stages", index, "start_from"),
            f"{start!r} is a comparison, whose cells end in different checkpoints",
            "name a stage before it, or put this stage before the comparison",
        )


def _named_cells(evaluation: object, made: Mapping[str, Sequence[str]]) -> object:
    """Put the cells in the place of their comparison where an evaluation names stages."""
    if not isinstance(evaluation, dict):
        return evaluation
    changed = {**evaluation}
    if isinstance(stages := changed.get("stages"), list):
        changed["stages"] = [name for stage in stages for name in made.get(str(stage), [stage])]
    if isinstance(tasks := changed.get("tasks"), list):
        changed["tasks"] = [_named_cells(task, made) for task in tasks]
    return changed
