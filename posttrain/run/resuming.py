"""Whether a run may be gone on with: who wrote its directory, and what changed since it began."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping

from posttrain.files.strict_json import Json, JsonObject
from posttrain.run.json_fields import integer, mapping, texts

#: What a run's directory looks like: raised when settings get other names or files another form, so that an
#: older run is not gone on with in the middle. Recorded in environment.json; 1 where nothing is recorded.
LAYOUT = 3
#: Keys that say where things lie and not what they are: a run may be moved, or resumed from elsewhere.
PLACES = {"output_dir", "base_dir"}
#: A section that may change: a run whose budget is spent goes on with a larger one.
BUDGET = "judge_budget"
#: Changes listed in an error before the rest is only counted.
MAX_CHANGES_LISTED = 12


def environment() -> JsonObject:
    """Return what a run records of where it runs: layout, Python, machine and packages."""
    found = importlib.metadata.distributions()
    packages = {dist.metadata["Name"]: dist.version for dist in found if "Name" in dist.metadata}
    return {
        "layout": LAYOUT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def foreign_layout(recorded: Mapping[str, Json]) -> str:
    """Return why a run cannot be resumed that another version of posttrain began; "" where it can be.

    Args:
        recorded: The run's `environment.json`.
    """
    layout = integer(recorded.get("layout")) or 1
    if layout == LAYOUT:
        return ""
    other = "an older" if layout < LAYOUT else "a newer"
    return (
        f"{other} version of posttrain began it, whose settings and files this one cannot continue (layout"
        f" {layout}, here {LAYOUT}). Begin anew under another `name`, or resume it with that version;"
        " `posttrain view`, `eval` and `export` work on it as it is"
    )


def changed_settings(before: Json, now: Json) -> str:
    """Return which settings differ, as one line; "" where none does.

    Args:
        before: The `resolved.json` that the run began with.
        now: The same of today.
    """
    old, new = _leaves(before), _leaves(now)
    changes = [
        f"{key}: {old.get(key, 'absent')} → {new.get(key, 'absent')}"
        for key in sorted((old.keys() | new.keys()) - PLACES)
        if old.get(key, "absent") != new.get(key, "absent") and key.partition(".")[0] != BUDGET
    ]
    more = len(changes) - MAX_CHANGES_LISTED
    return "; ".join(changes[:MAX_CHANGES_LISTED]) + (f"; and {more} more" if more > 0 else "")


def changed_packages(before: Mapping[str, Json], now: Mapping[str, Json]) -> str:
    """Return which packages have another version than an `environment.json` says, as one line."""
    old, new = (texts(mapping(each.get("packages"))) for each in (before, now))
    return ", ".join(f"{n} {old[n]} → {new.get(n, 'absent')}" for n in old if old[n] != new.get(n))


def _leaves(value: Json, key: str = "") -> JsonObject:
    """Return the leaves of nested mappings and lists by dotted key, as in `stages[1].learning_rate`."""
    if isinstance(value, dict) and value:
        parts = [_leaves(item, f"{key}.{name}" if key else name) for name, item in value.items()]
    elif isinstance(value, list) and value:
        parts = [_leaves(item, f"{key}[{index}]") for index, item in enumerate(value)]
    else:
        return {key: value}
    return {name: leaf for part in parts for name, leaf in part.items()}
