"""What a judge is asked to look at: a rubric file in YAML, checked before it is used."""

import functools
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

RUBRICS = Path(__file__).parent / "rubrics"
MAX_BYTES = 1 << 16
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Aspect(BaseModel):
    """One thing that the judge scores.

    Attributes:
        question: What the judge is to decide.
        weight: Its factor in the weighted mean.
        only_with: Asked only where the judge is shown such material.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    question: str = Field(min_length=1)
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    only_with: Literal["images", "tool_results"] | None = None


class Rubric(BaseModel):
    """Instructions for a judge, and the aspects that it scores.

    Attributes:
        instructions: What is judged and by which standard.
        scale: The best score of an aspect; the worst is 0.
        needs_reference: Whether samples without a ground truth are left out.
        aspects: By name.

    Example:
        Rubric(instructions="Judge the ANSWER.", aspects={"tone": Aspect(question="Is it polite?")})
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    instructions: str = Field(min_length=1)
    scale: int = Field(10, ge=1, le=100)
    needs_reference: bool = True
    aspects: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Aspect] = Field(min_length=1)

    def with_weights(self, weights: Mapping[str, float]) -> "Rubric":
        """Return the same rubric with other weights for the aspects named.

        Raises:
            ValueError: If an aspect is unknown or a weight is negative or not finite.
        """
        for name, weight in weights.items():
            if name not in self.aspects:
                raise ValueError(f"weights: no aspect {name!r}; the rubric has {', '.join(self.aspects)}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"weights: {name} is {weight!r}; it must be a number from 0 up")
        changed = {name: self.aspects[name].model_copy(update={"weight": weights[name]}) for name in weights}
        return self.model_copy(update={"aspects": self.aspects | changed})

    def asked(self, shown: Collection[str]) -> dict[str, Aspect]:
        """Return the aspects that count, given the kinds of material that the judge is shown.

        Raises:
            ValueError: If none is left.
        """
        asked = {
            name: aspect
            for name, aspect in self.aspects.items()
            if aspect.weight > 0 and (aspect.only_with is None or aspect.only_with in shown)
        }
        if not asked:
            raise ValueError("rubric: no aspect with a weight above 0 applies; raise a weight")
        return asked


def load_rubric(reference: str) -> Rubric:
    """Load a rubric that ships with the toolkit, by name, or a file that ends in .yaml.

    Raises:
        ValueError: If there is none, or it is not a rubric; the message says what is wrong with it.

    Example:
        load_rubric("general")
    """
    path = Path(reference)
    if _NAME.fullmatch(reference):
        path = RUBRICS / f"{reference}.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"rubric: {reference!r} is neither a name ({_shipped()}) nor a .yaml file")
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ValueError(
            f"rubric: {reference!r} cannot be read: {error.strerror}; shipped are {_shipped()}"
        ) from None


@functools.lru_cache(maxsize=64)
def _read(path: Path, changed_ns: int) -> Rubric:
    """Read a file, anew when it has changed."""
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise ValueError(f"rubric: {str(path)!r} is not a file of at most {MAX_BYTES} bytes")
    try:
        return Rubric.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the file"
        raise ValueError(f"rubric {str(path)!r}: {where}: {first['msg']}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(
            f"rubric {str(path)!r} is not YAML{f', line {mark.line + 1}' if mark else ''}"
        ) from None


def _shipped() -> str:
    return ", ".join(sorted(path.stem for path in RUBRICS.glob("*.yaml")))
