"""Which linear layers of a model get adapters, by the layers' names alone.

PEFT reads a string as a keyword or as a regular expression over all modules, and a list by the ends of names,
wherever these are. Here lists and `all-linear` mean the language model, and what is frozen is never adapted.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from posttrain.files.nearest import did_you_mean

Part = Literal["language model", "vision tower", "merger", "head"]

#: All linear layers of the language model; PEFT's keyword, in any case.
ALL_LINEAR = "all-linear"
#: What other toolkits call it.
_ALL_ELSEWHERE = ("all", "all_linear", "alllinear", "all-layers", "linear", "*")
#: The key that lets a part of the vision side be trained.
_FREEZERS: dict[Part, str] = {
    "vision tower": "model.freeze_vision_tower",
    "merger": "model.freeze_merger",
}
_MERGER = re.compile(r"(^|\.)visual\.(merger|deepstack_merger_list)(\.|$)")
_TOWER = re.compile(r"(^|\.)visual(\.|$)")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer)$")
#: Signs that a regular expression has and a name of layers has not.
_EXPRESSION = re.compile(r"[\\.^$*+?{}\[\]()|]")


class TargetError(ValueError):
    """Target modules that lead to no layer, or to one that is not trained."""


def part_of(name: str) -> Part:
    """Tell the part of a model that a module belongs to."""
    if _MERGER.search(name):
        return "merger"
    if _TOWER.search(name):
        return "vision tower"
    return "head" if _HEAD.search(name) else "language model"


def is_all_linear(targets: Sequence[str] | str | None) -> bool:
    """Tell whether all linear layers of the language model are meant."""
    one = targets[0] if isinstance(targets, list) and len(targets) == 1 else targets
    return one is None or (isinstance(one, str) and one.lower() == ALL_LINEAR)


def reaches_vision(
    linear: Collection[str], targets: Sequence[str] | str | None, frozen: Collection[Part]
) -> bool:
    """Tell whether layers of the vision side get adapters, which only an expression can give them.

    Args:
        linear: Names of all linear layers of the model; where there are none, whatever may be reached is.
        targets: As `lora.target_modules` has them.
        frozen: Parts that stay as they are.
    """
    trained = {part for part in _FREEZERS if part not in frozen}
    if not isinstance(targets, str) or is_all_linear(targets):
        return False
    if not linear:
        return bool(trained)
    return any(part_of(name) in trained for name in linear if re.fullmatch(targets, name))


def misread(target: str) -> str:
    """Return what to write for a string that is no use as a regular expression; "" if it may be.

    A name alone is the whole name of no layer: those begin with `model.`.
    """
    if is_all_linear(target):
        return ""
    if target.strip().lower() in _ALL_ELSEWHERE:
        return f"write {ALL_LINEAR}, which is all linear layers of the language model"
    names = [name.strip() for name in target.split(",")]
    if len(names) > 1 or not _EXPRESSION.search(target):
        return f"write a list of names, [{', '.join(names)}]; or {ALL_LINEAR}"
    return ""


def chosen_layers(
    linear: Collection[str], targets: Sequence[str] | str | None, frozen: Collection[Part]
) -> list[str]:
    """Choose the linear layers that get adapters.

    Args:
        linear: Names of all linear layers of the model.
        targets: As `lora.target_modules` has them.
        frozen: Parts that stay as they are; the head always does.

    Raises:
        TargetError: If a target finds no layer, or one of a part that stays as it is.
    """
    own = [name for name in linear if part_of(name) == "language model"]
    if is_all_linear(targets):
        return own
    if isinstance(targets, str):
        return _found_by_expression(linear, targets, frozen)
    for target in targets or ():
        if not any(_ends_so(name, target) for name in own):
            raise TargetError(_absent(target, own, linear))
    return [name for name in own if any(_ends_so(name, target) for target in targets or ())]


def kinds_of(names: Iterable[str]) -> Counter[str]:
    """Count layers by the last parts of their names, such as `q_proj`."""
    return Counter(name.rpartition(".")[2] for name in names)


def _found_by_expression(linear: Collection[str], expression: str, frozen: Collection[Part]) -> list[str]:
    found = [name for name in linear if re.fullmatch(expression, name)]
    for part in ("head", *_FREEZERS):
        reached = [name for name in found if part_of(name) == part]
        if not reached or (part != "head" and part not in frozen):
            continue
        if part == "head":
            raise TargetError(f"{expression!r} finds the head, which stays as it is; name less")
        raise TargetError(
            f"{expression!r} finds {len(reached):,} layers of the {part}, such as {reached[0]}, which"
            f" {_FREEZERS[part]} keeps fixed; name less, such as .*language_model.*(q_proj|v_proj), or set"
            f" {_FREEZERS[part]}: false"
        )
    if not found:
        example = next(iter(linear), "")
        raise TargetError(f"{expression!r} finds no linear layer; a whole name is {example}")
    return found


def _ends_so(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _absent(target: str, own: Collection[str], linear: Collection[str]) -> str:
    """Return why no layer of the language model has a name."""
    known = sorted(kinds_of(own))
    reason = f"the language model has no linear layer {target!r}; it has {', '.join(known)}"
    if elsewhere := [name for name in linear if _ends_so(name, target)]:
        part = part_of(elsewhere[0])
        reason += f". The {part} has, and lists are of the language model's layers alone"
        return (
            reason if part == "head" else f"{reason}: a regular expression may reach it where it is trained"
        )
    hint = did_you_mean(target, known)
    return f"{reason}; {hint}" if hint else reason
