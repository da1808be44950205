"""What a check returns, and the ways in which checks ask about packages without importing them."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement

PROBE_SECONDS = 180


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        name: What was looked at.
        status: "problem" if a run would fail, "warning" if it would run badly.
        detail: What was found.
        remedy: What to do about it, for warnings and problems.
        fix: Does what the remedy says; `posttrain doctor --fix` calls it.
    """

    name: str
    status: Literal["ok", "warning", "problem"]
    detail: str
    remedy: str = ""
    fix: Callable[[], None] | None = None


class ProbeError(Exception):
    """A child interpreter did not answer; the message is the last line it printed."""


def probe(code: str) -> Any:
    """Run `code` in a fresh interpreter of this environment; the JSON in its last line is the answer.

    A package that crashes, hangs or prints while it is imported does so there.

    Raises:
        ProbeError: The interpreter failed, took longer than PROBE_SECONDS or printed no JSON.
    """
    command = [sys.executable, "-c", code]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ProbeError(f"no answer within {PROBE_SECONDS} s") from None
    if child.returncode:
        lines = child.stderr.strip().splitlines()
        raise ProbeError(lines[-1] if lines else f"the interpreter ended with code {child.returncode}")
    try:
        return json.loads(child.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise ProbeError(f"unexpected answer {child.stdout[-200:]!r}") from None


def import_error(module: str) -> str:
    """Return why a fresh interpreter cannot import `module`; "" if it can."""
    try:
        probe(f"import {module}; print(0)")
    except ProbeError as error:
        return str(error)
    return ""


def installed_version(package: str) -> str | None:
    """Return the installed version of a distribution, None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def requirements(extra: str = "") -> list[Requirement]:
    """Return what posttrain requires on this platform; with `extra`, what that extra adds.

    Raises:
        PackageNotFoundError: posttrain runs from a folder and is not installed.
    """
    declared = [Requirement(line) for line in metadata.requires("posttrain") or []]
    base = [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]
    if not extra:
        return base
    return [r for r in declared if r not in base and r.marker and r.marker.evaluate({"extra": extra})]
