"""The base class of every section of a config, common types, and errors that name the key at fault."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NaturalFloat = Annotated[float, Field(ge=0)]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_ADDRESS = r"^(https?://[^\s@?#]+)?$"
#: What a pattern means, in a word and in a sentence's end.
PATTERNS = {
    _NAME: ("name", "up to 64 letters, digits, '.', '_' and '-', no mark first"),
    _VARIABLE: ("variable", "the name of an environment variable, not its value"),
    _ADDRESS: ("address", "an address that begins with http:// or https://, without user name and query"),
}
#: Names become folder names and metric prefixes.
Name = Annotated[str, Field(pattern=_NAME)]
#: The name of an environment variable.
Variable = Annotated[str, Field(pattern=_VARIABLE)]
Address = Annotated[str, Field(pattern=_ADDRESS)]


class Section(BaseModel):
    """A part of a config: unknown keys and near-miss types are refused, and nothing changes it later."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class MisfitError(ValueError):
    """A value that does not fit the rest of its section.

    Attributes:
        key: The key at fault, relative to the section that raises.
        reason: What is wrong.
        remedy: What to write instead.
    """

    def __init__(self, key: str, reason: str, remedy: str):
        super().__init__(f"{key}: {reason}; {remedy}")
        self.key, self.reason, self.remedy = key, reason, remedy


#: Smallest share of a whole: what draws in exact shares repeat is at most 10,000 draws long.
LEAST_SHARE = 1e-4


def check_shares(key: str, shares: dict[str, float]) -> None:
    """Check that shares add up to 1, and that none is too small to be drawn.

    Raises:
        MisfitError: If they do not sum to 1 (within 0.001), or one is below 1/10,000.
    """
    total = sum(shares.values())
    if abs(total - 1) > 1e-3:
        parts = " + ".join(f"{share:g}" for share in shares.values())
        raise MisfitError(
            key,
            f"the shares {parts} sum to {total:g}, not to 1",
            "scale them: " + ", ".join(f"{name}: {share / total:.4g}" for name, share in shares.items()),
        )
    for name, share in shares.items():
        if share < LEAST_SHARE * total:
            raise MisfitError(
                key,
                f"{share:g} of {name} is less than one draw in 10,000",
                f"give it at least {LEAST_SHARE:g}, or leave it out",
            )
