"""The rooms of the project: what may import what, file by file, how large things are, how light they load."""

import ast
import functools
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("posttrain", "rewards", "tools_env")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HEAVY = ("torch", "ray", "vllm", "transformers", "trl", "accelerate", "datasets", "fastapi", "cv2")
NO_CV2 = tuple(name for name in HEAVY if name != "cv2")

#: Rooms of posttrain from the bottom up, by module; the longest name that fits a file counts. A file imports
#: from its own layer and those below.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("posttrain", "types", "boxes", "failures", "visuals"),
    (
        *("messages", "looks", "reward_spec", "joints", "files", "media", "plugins", "sandbox"),
        *("chat_endpoint", "endpoint_variables", "concurrency", "gpus"),
    ),
    ("config", "doctor"),
    ("run",),
    ("data",),
    ("rendering", "models", "objectives", "inference"),
    ("curation", "rollout", "training.core", "quickstart", "preflight"),
    ("evaluation", "viewer"),
    ("training",),
    ("training.supervised", "training.on_policy", "quickstart.pretrain", "quickstart.runner"),
    ("first_party",),
    ("training.pipeline",),
    ("cli",),
)
#: What rewards and tools may import of posttrain, so that a plugin stays light.
PLUGIN_SIDE = (
    *(
        "types",
        "boxes",
        "failures",
        "visuals",
        "messages",
        "looks",
        "reward_spec",
        "plugins",
        "media",
        "files",
    ),
    *("sandbox", "chat_endpoint", "endpoint_variables", "concurrency"),
)
#: Where a heavy package may be imported; elsewhere it may not.
OWNERS: dict[str, tuple[str, ...]] = {
    "vllm": ("posttrain.inference",),
    "ray": (
        *("posttrain.run.cluster", "posttrain.run.actors", "posttrain.run.node", "posttrain.run.placement"),
        *("posttrain.run.home", "posttrain.run.shared_files", "posttrain.inference", "posttrain.training"),
        *("posttrain.curation.engines", "posttrain.doctor", "rewards.serving.replicas"),
        "posttrain.cli.submit",
    ),
    "trl": ("posttrain.training.supervised",),
    "fastapi": ("rewards.serving",),
    "cv2": ("posttrain.media.videos",),
}
#: Modules of posttrain that know rewards and tools themselves.
TOP = ("first_party", "cli")

MAX_FILE, MAX_FUNCTION, MAX_CLASS, MAX_PARAMETERS = 400, 60, 250, 8
MAX_ANY_PER_1000 = 12
MAX_ISINSTANCE_ON_STAGES = 6
#: First words of docstrings that name something.
NOT_VERBS = set(
    "The A An What Whether How Of Who When Where Our Its In As By With From For Each One Nothing".split()
)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever the import stands."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}:{node.lineno}: relative import"
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


EDGES = sorted(
    {(module, name) for module, path in MODULES.items() for name in imports(path) if name != module}
)


def within(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def layer(module: str) -> int:
    """The layer of a module of posttrain, by the longest room that holds it."""
    name = module.removeprefix("posttrain.")
    fits = [
        (len(room), index) for index, rooms in enumerate(LAYERS) for room in rooms if within(name, (room,))
    ]
    assert fits, f"{module} has no place in LAYERS: decide what it may import"
    return max(fits)[1]


def test_imports_point_downwards() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, name in EDGES
        if module.startswith("posttrain") and within(name, ("posttrain",)) and layer(name) > layer(module)
    ]
    assert not wrong


def test_heavy_packages_are_imported_where_they_belong() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, name in EDGES
        for package, owners in OWNERS.items()
        if within(name, (package,)) and not within(module, owners)
    ]
    assert not wrong


def test_plugins_and_the_toolkit_meet_at_the_top_alone() -> None:
    """Rewards and tools import the plugin side; only the top of posttrain imports them."""
    wrong = []
    for module, name in EDGES:
        own, target = module.partition(".")[0], name.partition(".")[0]
        if own != "posttrain" and target in PACKAGES and target != own:
            allowed = target == "posttrain" and within(name.removeprefix("posttrain."), PLUGIN_SIDE)
        elif own == "posttrain" and target in ("rewards", "tools_env"):
            allowed = within(module.removeprefix("posttrain."), TOP)
        else:
            continue
        if not allowed:
            wrong.append(f"{module} imports {name}")
    assert not wrong


def test_no_circle_of_files() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, name in EDGES:
        if name in MODULES:
            graph[module].add(name)
    done: set[str] = set()
    while ready := [module for module in graph if module not in done and graph[module] <= done]:
        done.update(ready)
    stuck = set(graph) - done
    # Of what is left, take away what nobody of it imports: what then remains are the circles.
    while loose := stuck - {name for module in stuck for name in graph[module]}:
        stuck -= loose
    assert not stuck


def test_objectives_import_torch_only() -> None:
    for path in (ROOT / "posttrain" / "objectives").rglob("*.py"):
        for name in imports(path):
            assert name.partition(".")[0] in {*sys.stdlib_module_names, "torch"} or within(
                name, ("posttrain.objectives",)
            ), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE, "split the file"
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            most = MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION
            assert length <= most, f"{node.name} has {length} lines"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and path in SOURCES:
            count = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
            own = count - (bool(node.args.args) and node.args.args[0].arg in ("self", "cls"))
            assert own <= MAX_PARAMETERS, f"{node.name} has {own} parameters"


def test_a_stage_is_asked_and_not_told_apart() -> None:
    found = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and len(node.args) == 2
        if "Stage" in ast.unparse(node.args[1])
    ]
    assert len(found) <= MAX_ISINSTANCE_ON_STAGES, found


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    documented: set[int] = set()
    for node in ast.walk(parsed(path)):
        speaks = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if speaks and ast.get_docstring(node, clean=False) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    empty = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type not in empty:
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held - documented)


def test_types_say_what_they_are() -> None:
    anys = sum(
        isinstance(node, ast.Name) and node.id == "Any" for path in SOURCES for node in ast.walk(parsed(path))
    )
    share = 1000 * anys / sum(map(code_lines, SOURCES))
    assert share <= MAX_ANY_PER_1000, f"{anys} times Any, {share:.1f} per 1,000 lines of code"


def test_docstrings_of_functions_begin_with_what_happens() -> None:
    """A noun phrase says what a value is; a function's first word says what it does."""
    nominal, count = [], 0
    for module, path in MODULES.items():
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = ast.get_docstring(node)
            if not text or any("property" in ast.unparse(mark) for mark in node.decorator_list):
                continue
            count += 1
            if text.split()[0].strip("`'\",.:") in NOT_VERBS or text[0] in "`…":
                nominal.append(f"{module}.{node.name}")
    assert len(nominal) <= count / 100, nominal


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("posttrain", HEAVY),
        ("posttrain.config", HEAVY),
        ("posttrain.cli.main", HEAVY),
        ("posttrain.preflight.examination", HEAVY),
        ("posttrain.first_party", NO_CV2),
        ("rewards", NO_CV2),
        ("tools_env", NO_CV2),
    ],
)
def test_importing_stays_light(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(parsed(path))


def test_every_folder_says_what_it_is_for() -> None:
    folders = {path.parent for path in SOURCES}
    silent = [f for f in folders if not (f / "__init__.py").is_file() and not (f / "README.md").is_file()]
    assert not silent
