"""Looking at a recipe is quick: nothing heavy is loaded for it."""

import subprocess
import sys

import pytest

from posttrain.config import recipe_names


@pytest.mark.parametrize("recipe", recipe_names())
def test_looking_loads_nothing_heavy(recipe, tmp_path):
    heavy = ("torch", "ray", "vllm", "transformers", "cv2")
    code = (
        f"import sys; from posttrain.cli.main import main; assert main(['validate', {recipe!r}]) == 0; "
        f"print(sorted(set({heavy!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.rstrip().endswith("[]")
