"""What an examination finds, and where."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from posttrain.config import ConfigError, Document, Problem, RunConfig
from posttrain.config.document import Key
from posttrain.joints import Plugins

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Findings:
    """What an examination brought to light.

    Attributes:
        problems: What will make the run fail.
        missing_here: What an environment variable names that is not set on this machine, such as the folder
            of a dataset; a recipe is valid without it, but cannot start.
        notes: What happens otherwise than one might think.
        memory: What each process takes, as rows of a table.
    """

    problems: list[Problem] = field(default_factory=list)
    missing_here: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    memory: list[tuple[str, str]] = field(default_factory=list)


class Examination:
    """One look at one run: what is looked at, and what was found so far.

    Attributes:
        config: The run.
        plugins: Load its rewards and tools.
        base_dir: Folder against which datasets and plugin files are resolved.
        findings: What was found.
    """

    def __init__(self, config: RunConfig, document: Document, plugins: Plugins):
        self.config, self.plugins = config, plugins
        self.base_dir = Path(config.base_dir)
        self.findings = Findings()
        self._document = document

    def problem(self, key: Key, reason: str, remedy: str = "") -> None:
        """Note what will make the run fail, at the place of its key."""
        problem = self._at(key, reason, remedy)
        if problem not in self.findings.problems:  # the cells of a comparison share most of their keys
            self.findings.problems.append(problem)

    def missing(self, key: Key, reason: str, remedy: str) -> None:
        """Note what is not on this machine, and may be on another."""
        self.findings.missing_here.append(self._at(key, reason, remedy))

    def note(self, text: str) -> None:
        """Note what is worth knowing."""
        self.findings.notes.append(text)

    def attempt(self, key: Key, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call what may refuse its arguments by a ValueError; a refusal becomes a problem, and None."""
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            self.problem(key, str(error))
            return None

    def load(
        self, key: Key, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Read a file that a key names; each of its problems becomes one at the key, and the result None."""
        try:
            return function(*args, **kwargs)
        except ConfigError as error:
            for found in error.problems:
                inside = f"{found.where}: {found.key}: {found.reason}" if found.key else ""
                self.problem(key, inside or f"{found.reason} as {name!r}", found.remedy)
            return None

    def _at(self, key: Key, reason: str, remedy: str) -> Problem:
        return Problem(self._document.place(key), self._document.key_text(key), reason, remedy)
