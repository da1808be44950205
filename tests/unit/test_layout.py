"""The layout and the import direction of the project, and that importing it stays light."""

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("posttrain", "rewards", "tools_env")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HEAVY = ("torch", "ray", "vllm", "transformers", "trl", "accelerate", "datasets", "fastapi")

#: Parts of posttrain from the bottom up; a part imports from its own layer and those below.
LAYERS = (
    {
        "types",
        "messages",
        "images",
        "videos",
        "strict_json",
        "chat_endpoint",
        "commands",
        "durable",
        "line_log",
        "progress",
    },
    {"config"},
    {"plugins", "tracking", "run_dir", "run_process", "cluster", "doctor"},
    {"rollout", "data", "models", "objectives", "preflight"},
    {"training", "evaluation", "viewer"},
    {"cli", "data_cli"},
)
#: Leaves that rewards and tools may import of posttrain, so that a plugin stays light.
PLUGIN_SIDE = {"types", "messages", "plugins", "images", "strict_json", "chat_endpoint", "commands"}
#: Which parts may import a heavy package.
OWNERS = {
    "vllm": {"rollout"},
    "ray": {"cluster", "rollout", "training", "rewards"},  # rewards: Ray Serve
    "trl": {"training"},
    "fastapi": {"rewards"},
}


def part(module: str) -> str:
    """`posttrain.data.formats` → `data`; another package → its own name."""
    names = module.split(".")
    return names[1] if names[0] == "posttrain" and len(names) > 1 else names[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}:{node.lineno}: relative import"
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # `from posttrain import doctor` imports posttrain.doctor
            yield from (
                (f"posttrain.{alias.name}" if node.module == "posttrain" else node.module, node)
                for alias in node.names
                if alias.name != "__version__"
            )


EDGES = [
    pytest.param(path, name, id=f"{module_of(path)}-{name}")
    for path in SOURCES
    for name in sorted({name for name, _ in imports(path)})
    if name.split(".")[0] in (*PACKAGES, *HEAVY)
]


def layer(name: str) -> int:
    found = [index for index, parts in enumerate(LAYERS) if name in parts]
    assert found, f"posttrain.{name} has no place in LAYERS: decide what it may import"
    return found[0]


@pytest.mark.parametrize(("path", "imported"), EDGES)
def test_import_direction(path: Path, imported: str) -> None:
    package, own, target = path.relative_to(ROOT).parts[0], part(module_of(path)), part(imported)
    top = imported.split(".")[0]
    if top in HEAVY:
        assert own in OWNERS.get(top, {own}), f"{own} must not import {top}"
    elif package != "posttrain":
        assert top == package or target in PLUGIN_SIDE, (
            f"{package} may import only {PLUGIN_SIDE} of posttrain"
        )
    elif top != "posttrain":
        assert own == "cli", "posttrain reaches rewards and tools by reference strings"
    else:
        assert layer(target) <= layer(own), f"{own} lies below {target}"


def test_only_rollout_shares_the_rendering_of_data() -> None:
    middle = LAYERS[3] - {"rollout", "data"}
    for path in SOURCES:
        if part(module_of(path)) in middle:
            assert "posttrain.rendering.rendering" not in {name for name, _ in imports(path)}, path


def test_objectives_import_torch_only() -> None:
    for path in (ROOT / "posttrain" / "objectives").rglob("*.py"):
        for name, _ in imports(path):
            top = name.split(".")[0]
            assert (
                top in sys.stdlib_module_names or top == "torch" or name.startswith("posttrain.objectives")
            ), f"{path.name} imports {name}"


def test_vllm_is_imported_in_two_files_at_most() -> None:
    assert len([path for path in SOURCES if "vllm" in {name.split(".")[0] for name, _ in imports(path)}]) <= 2


def test_parts_do_not_import_each_other_in_circles() -> None:
    edges = {(part(module_of(path)), part(name)) for path in SOURCES for name, _ in imports(path)}
    graph: dict[str, set[str]] = {}
    for source, target in edges:
        if source != target:
            graph.setdefault(source, set()).add(target)

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        return any(
            step == goal or (step not in seen and reaches(step, goal, seen | {step}))
            for step in graph.get(start, ())
        )

    circles = [
        pair
        for pair in itertools.combinations(graph, 2)
        if reaches(pair[0], pair[1], set()) and reaches(pair[1], pair[0], set())
    ]
    assert not circles


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, "split the file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize(
    "module",
    [
        "posttrain",
        "posttrain.config",
        "rewards",
        "tools_env",
        "posttrain.cli",
        "posttrain.preflight.examination",
    ],
)
def test_importing_stays_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == ""


def test_every_package_says_what_it_is_for() -> None:
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.name == "__init__.py", (
            path
        )
