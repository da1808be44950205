"""Packages that only some settings need."""

from dataclasses import dataclass

from posttrain.config.document import Key


@dataclass(frozen=True)
class PackageUse:
    """An optional package that a setting needs.

    Attributes:
        key: Path of the key that needs it, from the section that has it.
        module: Name under which it is imported.
        extra: Extra of this project that installs it; empty if it comes from elsewhere.
        other_way: How it is installed, where that takes more than the extra.
    """

    key: Key
    module: str
    extra: str
    other_way: str = ""

    @property
    def remedy(self) -> str:
        """How it is installed."""
        return self.other_way or f"pip install 'posttrain[{self.extra}]'"
