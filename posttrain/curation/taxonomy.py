"""The taxonomy: domains and their sub-categories, and telling a query's by its words."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from posttrain.config.base import MisfitError, Name, Section
from posttrain.config.document import read_document
from posttrain.config.problems import problems_of
from posttrain.files.nearest import did_you_mean

_BETWEEN_WORDS = re.compile(r"[^\w-]+")
#: Most characters of a query that are searched for keywords.
MAX_QUERY = 10_000


class Subcategory(Section):
    """A sub-category."""

    description: str = Field(min_length=1, description="What a classifying model is told of it.")
    keywords: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="Words and phrases that speak for it."
    )


class Fallback(Section):
    """Where a query goes in which no keyword stands."""

    image: Name = Field(description="Sub-category of queries with images.")
    text: Name = Field(description="Sub-category of queries without.")


class TaxonomyFile(Section):
    """What a taxonomy's YAML file holds."""

    fallback: Fallback = Field(description="Where a query goes in which no keyword stands.")
    domains: dict[Name, dict[Name, Subcategory]] = Field(
        min_length=1, description="Sub-categories by domain."
    )

    @model_validator(mode="after")
    def _check(self) -> "TaxonomyFile":
        names = [*self.domains, *(name for members in self.domains.values() for name in members)]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise MisfitError("domains", f"the name {repeated!r} is there twice", "rename one of them")
        for key in ("image", "text"):
            name = getattr(self.fallback, key)
            if name not in names or name in self.domains:
                raise MisfitError(f"fallback.{key}", f"there is no sub-category {name!r}", "name one")
        return self


@dataclass(frozen=True)
class Taxonomy:
    """Domains and sub-categories.

    Attributes:
        domains: Sub-categories by domain, in the file's order.
        domain_of: Domain by sub-category.
        fallback: Where a query goes in which no keyword stands.
        keywords: By sub-category, as `_spelled` spells them; those of scripts without spaces bare.

    Example:
        load_taxonomy().by_keywords("Find the area of the triangle.", has_images=True)  # geometry
    """

    domains: dict[str, dict[str, Subcategory]]
    domain_of: dict[str, str]
    fallback: Fallback
    keywords: dict[str, list[str]]

    def by_keywords(self, query: str, has_images: bool) -> tuple[str, list[str]]:
        """The sub-category with most words of its keywords in a query, and those keywords.

        A phrase counts as many times as it has words; of several equal ones the first wins. Of a long query
        the beginning and the end are read.
        """
        if len(query) > MAX_QUERY:
            query = f"{query[: MAX_QUERY // 2]}\n{query[-MAX_QUERY // 2 :]}"
        best, found = (self.fallback.image if has_images else self.fallback.text), []
        most, words = 0, _spelled(query)
        for name, keywords in self.keywords.items():
            matched = [keyword.strip() for keyword in keywords if keyword in words]
            weight = sum(len(keyword.split()) for keyword in matched)
            if weight > most:
                best, found, most = name, matched, weight
        return best, found

    def described(self) -> str:
        """Every sub-category with its description, for a model."""
        return "\n".join(
            f"- {name} ({domain}): {member.description}"
            for domain, members in self.domains.items()
            for name, member in members.items()
        )

    def unknown(self, names: Collection[str]) -> str:
        """Return what is wrong with the first name that is no domain or sub-category; "" if all are."""
        known = [*self.domains, *self.domain_of]
        wrong = next((name for name in names if name not in known), None)
        if wrong is None:
            return ""
        hint = did_you_mean(wrong, known) or f"the domains are {', '.join(self.domains)}"
        return f"{wrong!r} is neither a domain nor a sub-category; {hint}"


def load_taxonomy(path: str | None = None) -> Taxonomy:
    """Read a taxonomy.

    Args:
        path: A YAML file; the shipped one if None.

    Raises:
        ConfigError: If it cannot be read, or is not of the form.
    """
    document = read_document(Path(path) if path is not None else SHIPPED)
    try:
        checked = TaxonomyFile.model_validate(document.data)
    except ValidationError as error:
        raise problems_of(error, document, TaxonomyFile) from None
    members = {name: member for group in checked.domains.values() for name, member in group.items()}
    return Taxonomy(
        domains=checked.domains,
        domain_of={name: domain for domain, group in checked.domains.items() for name in group},
        fallback=checked.fallback,
        keywords={
            name: [_spelled(word) if word.isascii() else word.casefold() for word in member.keywords]
            for name, member in members.items()
        },
    )


SHIPPED = Path(str(files("posttrain").joinpath("curation", "taxonomy.yaml")))


def _spelled(text: str) -> str:
    """A text's words in lower case, each between single spaces."""
    return f" {_BETWEEN_WORDS.sub(' ', text.casefold())} "
