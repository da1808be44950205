"""A run's page as a browser would read it, and the run's files."""

import base64
import hashlib
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

from posttrain.viewer import write_report

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """What of a page matters here; raises where tags do not nest."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}  # class_ for class
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]

    @property
    def visible(self) -> str:
        shown = (
            text for tag, texts in self.texts.items() if tag not in ("style", "script") for text in texts
        )
        return " ".join(" ".join(shown).split())

    def assert_harmless(self) -> None:
        """Nothing is loaded, and the only script is the page's own, by its hash."""
        assert [len(self.all(tag)) for tag in ("script", "iframe", "object", "link", "form", "base")] == [
            1
        ] + [0] * 5
        for _, attributes in self.tags:
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "action", "srcset", "xlink:href"):
                assert (attributes.get(name) or "data:image/").startswith("data:image/")
            # Links lead to files beside the page, or to a place on it.
            places = ("./rollouts/", "./sft/", "./dpo/", "./episodes.html", "#")
            assert (attributes.get("href") or "#").startswith(places)
        digest = base64.b64encode(hashlib.sha256("".join(self.texts["script"]).encode()).digest()).decode()
        policy = self.all("meta", **{"http-equiv": "Content-Security-Policy"})
        assert "default-src 'none'" in str(policy[0]["content"])
        assert f"script-src 'sha256-{digest}'" in str(policy[0]["content"])
        assert "url(" not in "".join(self.texts["style"])
        assert "@import" not in "".join(self.texts["style"])


def copy_of(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def page_of(run: Path) -> Page:
    page = Page(write_report(run))
    page.assert_harmless()
    return page


def rollout_files(run: Path) -> list[Path]:
    return sorted((run / "rollouts").rglob("*.jsonl"))


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
