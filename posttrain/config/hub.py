"""Datasets of the Hugging Face Hub: found in its cache on this machine, and never fetched.

They are written `org/name`, `org/name/folder`, `org/name@revision`, or as the Hub's own addresses,
`hf://datasets/org/name` and `https://huggingface.co/datasets/org/name`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

_SCHEME = "hf://datasets/"
_ADDRESS = re.compile(
    r"(?:hf://datasets/|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/)(?P<rest>.+)"
)
#: Between a dataset's name and a file's in the addresses of its pages.
_PAGE = re.compile(
    r"(?P<name>[^/]+/[^/]+)/(?:tree|blob|resolve|viewer)/(?P<revision>\w[^/]*)(?P<inside>/.*)?"
)
_PART = r"[A-Za-z0-9_][\w.-]{0,95}"
_REFERENCE = re.compile(
    rf"(?P<name>{_PART}(?:/{_PART})?)(?:@(?P<revision>\w[\w.-]*))?(?P<inside>(?:/[\w.+=-]+)*)/?", re.ASCII
)
#: Files of rows; a path that ends so is one of this machine unless the Hub's cache has it.
_FILE = re.compile(r"\.(?:jsonl?|parquet|csv|tsv|arrow|ya?ml|txt|gz|zip|tar)$", re.IGNORECASE)


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hub, or a file or a folder of it.

    Attributes:
        name: As the Hub has it, `org/name`.
        revision: A branch, a tag or a commit.
        inside: Path of a file or a folder inside; "" for all.
    """

    name: str
    revision: str = "main"
    inside: str = ""

    def __str__(self) -> str:
        """Write it as an address of the Hub."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{_SCHEME}{self.name}{revision}{'/' if self.inside else ''}{self.inside}"

    @property
    def cached(self) -> Path | None:
        """Where the Hub's cache has it; None if it does not."""
        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{self.name.replace('/', '--')}"
        try:
            commit = (folder / "refs" / self.revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            commit = self.revision
        path = folder / "snapshots" / commit / self.inside
        # A path that is too long is just none.
        return path if commit and os.path.exists(path) else None  # noqa: PTH110

    @property
    def fetching(self) -> str:
        """The command that fetches it into the cache."""
        revision = "" if self.revision == "main" else f" --revision {self.revision}"
        return f"hf download {self.name} --repo-type dataset{revision}"


def is_address(written: str) -> bool:
    """Tell whether a text is an address of the Hub and can be no path."""
    return _ADDRESS.fullmatch(written) is not None


def hub_dataset(written: str) -> HubDataset | None:
    """Read how a dataset of the Hub may be written; None if it cannot be one."""
    address = _ADDRESS.fullmatch(written)
    rest = address["rest"].partition("?")[0] if address else written
    if ".." in rest.split("/"):
        return None
    if address and (page := _PAGE.fullmatch(rest)):
        return HubDataset(page["name"], page["revision"], (page["inside"] or "").strip("/"))
    found = _REFERENCE.fullmatch(rest)
    if found is None:
        return None
    return HubDataset(found["name"], found["revision"] or "main", found["inside"].strip("/"))


def how_to_fetch(path: str) -> str:
    """Return what to do where nothing is at a dataset's path that may mean one of the Hub; else ""."""
    told = "nothing is fetched by itself"
    if is_address(path) and (found := hub_dataset(path)) is not None:
        return f"it is not in the Hub's cache, and {told}: {found.fetching}"
    parts = Path(path).parts[-2:]
    found = hub_dataset("/".join(parts)) if len(parts) == 2 and not _FILE.search(path) else None
    if found is None or "/" not in found.name:
        return ""
    return (
        f"if it is {found.name} of the Hugging Face Hub, fetch it first, as {told}: {found.fetching}"
        f" --local-dir {path}"
    )
