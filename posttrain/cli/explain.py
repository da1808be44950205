"""`posttrain explain [KEY]`: the reference of every key of the YAML files, as text."""

import argparse
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from posttrain.config.reference import ANY_NAME, FILES, NOT_TAKEN, Entry, Found, look_up, reference

EXAMPLES = """\
examples:
  posttrain explain                            every section of a run, and its keys by name
  posttrain explain stages.rl                  the keys of an rl stage: type, default, meaning
  posttrain explain stages.rl.algorithm        a section that comes in several variants
  posttrain explain learning_rate              a key, wherever there is one of that name
  posttrain explain dataset                    the keys of a dataset's YAML
  posttrain explain curation.steps.reward      a filter of a curation recipe
  posttrain explain num_generations            what another toolkit's key is called here
  posttrain explain stages.sft --all           with every section inside written out
"""
#: Keys that the variants of a section may have in total and still be written out.
MOST_KEYS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `posttrain explain` to its parser."""
    parser.add_argument(
        "key", metavar="KEY", nargs="?", help="a path, or its last part; all sections of a run if absent"
    )
    parser.add_argument("--all", action="store_true", help="write out every section inside")


def explain_command(options: argparse.Namespace) -> int:
    """Print the reference of a key, or the overview of all."""
    page = _Page(min(110, max(80, shutil.get_terminal_size((100, 24)).columns)), options.all)
    lines = page.overview() if options.key is None else page.found(look_up(options.key))
    print("\n".join(line.rstrip() for line in lines))
    return 0


class _Page:
    """Entries of the reference as lines of text.

    Args:
        width: Characters of a line.
        expand: Write out the sections inside of a section, too.
    """

    def __init__(self, width: int, expand: bool = False):
        self._width, self._expand = width, expand

    def overview(self) -> Iterator[str]:
        """Yield the keys of a run, and of each section inside their names alone."""
        if self._expand:
            for root in reference().values():
                yield from self._page([root], [])
                yield ""
            return
        run, *others = reference().values()
        yield from self._wrap(f"The keys of {run.description}.")
        yield ""
        for entry in run.children:
            yield from self._wrap(f"{entry.name}: {_first_sentence(entry.description)}", hang=2)
            for variant in entry.children if _has_variants(entry) else ():
                yield from self._wrap(_title(variant), 4, hang=2)
                yield from self._names(variant.children, 8)
            if not _has_variants(entry):
                yield from self._names(entry.children, 4)
        yield from ["", "More of one key: `posttrain explain KEY`. More files:"]
        yield from (f"    posttrain explain {entry.name:<10} {entry.description}" for entry in others)

    def found(self, found: Found) -> Iterator[str]:
        """Yield everything there is to say of a key."""
        if found.note:
            yield from [*self._wrap(f"({found.note})"), ""]
        for number, group in enumerate(found.groups):
            yield from [""] if number else []
            yield from self._page(group, found.elsewhere if number + 1 == len(found.groups) else [])

    def _page(self, places: Sequence[Entry], elsewhere: Sequence[Entry]) -> Iterator[str]:
        """Yield one meaning of a key, with the places that have it, and what is inside it."""
        entry = places[0]
        yield from self._wrap(", ".join(dict.fromkeys(place.text for place in places)), hang=2)
        yield from self._wrap(_facts(entry), 4, hang=2)
        yield from self._wrap(entry.description, 4)
        yield from self._inside(entry, 0)
        if elsewhere:
            texts = ", ".join(dict.fromkeys(place.text for place in elsewhere))
            yield from ["", *self._wrap(f"Keys of that name elsewhere: {texts}", hang=2)]

    def _inside(self, entry: Entry, indent: int) -> Iterator[str]:
        """Yield the keys of a section; where it comes in variants, those that all have in common first."""
        if not _has_variants(entry):
            for key in entry.children:
                yield from ["", *self._key(key, indent)]
            return
        shared = _shared(entry)
        if shared:
            yield from ["", *self._wrap("in every variant:", indent)]
            for key in shared.values():
                yield from self._key(key, indent + 2)
        own = [[key for key in variant.children if key.name not in shared] for variant in entry.children]
        written_out = self._expand or len(shared) + sum(map(len, own)) <= MOST_KEYS
        for variant, keys in zip(entry.children, own, strict=True):
            yield from ["", *self._wrap(_title(variant), indent, hang=2)]
            if not written_out:
                yield from self._names(keys, indent + 4)
                yield from self._wrap(f"`posttrain explain {variant.text}` tells more", indent + 4)
                continue
            for key in keys:
                if not key.kind.startswith("the word"):
                    yield from self._key(key, indent + 2)

    def _key(self, key: Entry, indent: int) -> Iterator[str]:
        """Yield one key of a section: its type and default, what it means, and what is inside."""
        yield from self._wrap(f"{key.name}: {_facts(key)}", indent, hang=4)
        yield from self._wrap(key.description, indent + 4)
        if self._expand:
            yield from self._inside(key, indent + 4)
        elif _has_variants(key):
            for variant in key.children:
                yield from self._wrap(_title(variant), indent + 6, hang=2)
        elif key.children:
            yield from self._names(key.children, indent + 4)

    def _names(self, keys: Sequence[Entry], indent: int) -> Iterator[str]:
        """Yield the names of keys, by commas; of those with keys of their own marked so."""
        names = [f"{key.name}{{…}}" if key.children else key.name for key in keys]
        yield from self._wrap(", ".join(names), indent)

    def _wrap(self, text: str, indent: int = 0, hang: int = 0) -> list[str]:
        """Return a text in lines, all but the first indented by `hang` more."""
        margin = " " * indent
        return textwrap.wrap(
            " ".join(text.split()),
            self._width,
            initial_indent=margin,
            subsequent_indent=margin + " " * hang,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _has_variants(entry: Entry) -> bool:
    """Tell whether a section comes in several variants."""
    return bool(entry.children) and all(child.choice for child in entry.children)


def _shared(entry: Entry) -> dict[str, Entry]:
    """Return the keys that mean the same in every variant of a section."""
    first, *others = entry.children

    def meaning(key: Entry) -> tuple[str, str, str | None, str]:
        return key.name, key.kind, key.default, key.description

    common = {meaning(key) for key in first.children}
    for other in others:
        common &= {meaning(key) for key in other.children}
    return {key.name: key for key in first.children if meaning(key) in common}


def _facts(entry: Entry) -> str:
    """Return type and default of a key; of a variant, what chooses it."""
    if entry.choice:
        return entry.choice
    if entry.path[0] in FILES and len(entry.path) == 1:
        return ""
    kind = entry.kind + (f", by {ANY_NAME}" if ANY_NAME in entry.path[-1:] else "")
    if entry.kind.startswith("the word"):
        return f"{kind}, which chooses this variant"
    if entry.kind == NOT_TAKEN:
        return kind
    return f"{kind}; " + ("required" if entry.default is None else f"default: {entry.default}")


def _title(variant: Entry) -> str:
    """Return what chooses a variant, and what it is."""
    return f"{variant.choice} – {_first_sentence(variant.description)}"


def _first_sentence(text: str) -> str:
    """Return the first sentence of a description or docstring."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".")
