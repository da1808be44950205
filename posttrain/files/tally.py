"""Sums in a small file that several processes add to: an addition is in it once, whoever is killed when."""

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from posttrain.files.lock import file_lock
from posttrain.files.strict_json import JsonError, parse_json


class TallyError(RuntimeError):
    """The file of a tally is there and cannot be read, or cannot be written."""


class Tally:
    """Named sums in a JSON file.

    Args:
        path: The file; it is made by the first addition, in a folder that exists.

    Example:
        Tally(run / "judge-ledger.json").change(lambda sums: {**sums, "calls": sums.get("calls", 0.0) + 1})
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, float]:
        """Return the sums; none where there is no file.

        Raises:
            TallyError: If the file holds something else.
        """
        try:
            sums = parse_json(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError, JsonError) as error:
            raise TallyError(f"{self.path} cannot be read: {error}") from None
        if not isinstance(sums, dict) or not all(_is_sum(value) for value in sums.values()):
            raise TallyError(f"{self.path} holds no sums; what was counted in it is lost")
        return {name: float(value) for name, value in sums.items()}

    def change(self, change: Callable[[dict[str, float]], Mapping[str, float]]) -> dict[str, float]:
        """Replace the sums by what a function makes of them, while no other process changes them.

        Args:
            change: Returns the new sums; what it raises leaves them as they are.

        Returns:
            The new sums.

        Raises:
            TallyError: If the file cannot be read or written.
        """
        unfinished = self.path.with_name(f".{self.path.name}.tmp")
        with file_lock(self.path.with_name(f".{self.path.name}.lock")):
            sums = dict(change(self.read()))
            try:
                # Not synced: a crash of the machine may lose the last additions, but never a process's end.
                unfinished.write_text(json.dumps(sums), encoding="utf-8")
                unfinished.replace(self.path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    unfinished.unlink(missing_ok=True)
                raise TallyError(f"{self.path} cannot be written: {error.strerror}") from None
        return sums


def _is_sum(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    )
