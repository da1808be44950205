"""A run by the command line, as its user begins it, from its start to its end."""

import os
import subprocess
import sys
from pathlib import Path


def run_in(folder: Path, recipe: str, timeout: float) -> Path:
    """Run a recipe of a folder; return the folder of its runs, once the run has ended well.

    Args:
        folder: The folder, which holds the run's cache as well.
        recipe: Name of the file.
        timeout: Seconds after which it has hung.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "posttrain.cli", "run", recipe, "output_dir=runs"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"POSTTRAIN_CACHE": str(folder / "cache")},
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder / "runs"
