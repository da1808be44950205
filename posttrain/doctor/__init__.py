"""`posttrain doctor`: whether this environment can run the toolkit, and how to fix what cannot."""

import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from posttrain.doctor import machine, software
from posttrain.doctor.finding import Finding, installed_version

Check = Callable[[], Finding]

#: What `fix` can repair; transformers and vLLM cannot be imported before.
FIXABLE: tuple[Check, ...] = (software.check_torchvision, software.check_torch_audio)
CHECKS: tuple[Check, ...] = (
    software.check_python,
    software.check_packages,
    software.check_torch,
    *FIXABLE,
    software.check_transformers,
    software.check_vllm,
    software.check_ray,
    machine.check_gpus,
    machine.check_cores,
    machine.check_memory,
    machine.check_shared_memory,
    machine.check_waiting_threads,
    machine.check_sandbox,
)
MARKS = {"ok": "✓", "warning": "!", "problem": "✗"}
NAME_WIDTH = 17


def run(fix: bool = False, checks: Sequence[Check] = CHECKS, fixable: Sequence[Check] = FIXABLE) -> int:
    """Print a line for each check as soon as it is known; with `fix`, repair first what can be repaired.

    Returns:
        The exit code: 1 if a problem is left that would make a run fail, else 0.

    Example:
        posttrain doctor --fix
    """
    if installed_version("posttrain") is None:
        show(Finding("posttrain", "problem", "runs from a folder, is not installed", software.SETUP))
        return 1
    if fix:
        for check in fixable:
            repair(check())
    problems = 0
    with ThreadPoolExecutor(max_workers=2) as pool:  # the slow ones wait for child processes
        for finding in pool.map(lambda check: check(), checks):
            show(finding)
            problems += finding.status == "problem"
    print(f"\n{problems} problem(s) to solve." if problems else "\nReady: posttrain run quickstart")
    return int(problems > 0)


def show(finding: Finding) -> None:
    """Print a finding, and under it what to do."""
    print(f"{MARKS[finding.status]} {finding.name:<{NAME_WIDTH}}{finding.detail}", flush=True)
    if finding.remedy:
        print(f"  {'':<{NAME_WIDTH}}→ {finding.remedy}", flush=True)


def repair(finding: Finding) -> None:
    """Apply a finding's fix, if it has one, and say so; a fix that fails leaves its problem to be shown."""
    if finding.fix is None:
        return
    try:
        finding.fix()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"could not fix {finding.name}: {error}", flush=True)
    else:
        print(f"fixed {finding.name}: {finding.detail}", flush=True)
