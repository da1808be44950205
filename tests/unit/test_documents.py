"""What the documents say is there, and what the package ships is all of it."""

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import posttrain
from posttrain.cli.main import build_parser
from posttrain.config import DatasetConfig, build_run
from posttrain.config.document import parse_document

ROOT = Path(__file__).parents[2]
PACKAGES = ("posttrain", "rewards", "tools_env", "datasets_cfg")
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / ".github").rglob("*.md")),
    *sorted(path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*.md")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: Notes that are not part of the repository, and sections of them.
UNPUBLISHED = re.compile(
    r"\b(?:DESIGN|ANCHORS|ON_POLICY)\b|\bRECIPE(?:\.md\b|:| ?§| \d)|\bRELIABILITY(?!\.md)"
)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of a document that are in one of the languages; "" is that of a bare fence."""
    fenced = re.findall(
        r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    return [text for language, text in fenced if language in languages]


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_commands_exist(path: Path) -> None:
    for block in blocks(path, "bash", ""):
        for line in block.splitlines():
            if not re.match(r"posttrain |(?:scripts|\.ci)/\w", line):
                continue
            program, *arguments = shlex.split(line, comments=True)
            if program == "posttrain":
                _, unknown = build_parser().parse_known_args(arguments)  # SystemExit: no such command
                assert not any(word.startswith("-") for word in unknown), line
            else:
                assert (ROOT / program).is_file(), line


def test_examples_are_runs_and_datasets() -> None:
    runs = 0
    for path in DOCUMENTS:
        for text in blocks(path, "yaml"):
            document = parse_document(text, named(path))
            if "stages" in document.data:
                document.data["model"].setdefault(
                    "family", "qwen3_vl"
                )  # told by a checkpoint, if it is there
                build_run(document)
                runs += 1
            else:
                DatasetConfig.model_validate(document.data)
    assert runs >= 2


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "posttrain" / "README.md"], ids=named)
def test_maps_show_every_room(path: Path) -> None:
    [tree] = [block for block in blocks(path, "") if "objectives/ " in block]
    shown = {name for line in tree.splitlines() for name in re.findall(r"(?:^|  )(\w+)/(?= )", line)}
    rooms = {folder.name for folder in (ROOT / "posttrain").iterdir() if folder.is_dir()} - {"__pycache__"}
    top = {folder.name for folder in ROOT.iterdir() if folder.is_dir()}
    assert rooms <= shown
    assert shown <= rooms | top


def test_what_holds_is_shown_by_tests_that_exist() -> None:
    text = (ROOT / "posttrain" / "RELIABILITY.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| (?:\d+ )?\| ", line)]
    assert len(rows) > 20
    for row in rows:
        tests = re.findall(r"`([\w/]+\.py)`", row[-1])
        assert tests, row
        assert all((ROOT / "tests" / test).is_file() for test in tests), row
    numbers = re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)
    assert len(numbers) == len(set(numbers))


def test_no_document_is_cited_that_users_do_not_have() -> None:
    suffixes = {".py", ".yaml", ".md", ".sh", ".jinja", ".toml"}
    folders = (ROOT / name for name in (*PACKAGES, "scripts", "tests", ".github"))
    for path in (path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes):
        found = UNPUBLISHED.search(path.read_text(encoding="utf-8"))
        assert found is None or path == Path(__file__), f"{path}: {found}"


def test_every_file_of_a_package_is_shipped() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
                assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns), path


def test_packages_are_typed_and_have_one_version() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in ("posttrain", "rewards", "tools_env"))
    assert "version" in PROJECT["project"]["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:\.dev\d+)?", posttrain.__version__)
