"""The taxonomy: domains and their sub-categories, and how to find a query's by its words."""

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
#: Most characters of a query in which keywords are looked for.
MAX_QUERY = 10_000


class Subcategory(Section):
    """A sub-category."""

    description: str = Field(min_length=1, description="What a classifying model is told of it.")
    keywords: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="Words and phrases that speak for it."
    )


class Fallback(Section):
    """The sub-categories of queries without a keyword."""

    image: Name = Field(description="Sub-category of queries with images.")
    text: Name = Field(description="Sub-category of queries without.")


class TaxonomyFile(Section):
    """The content of a taxonomy's YAML file."""

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
        domains: Sub-categories by domain, in the order of the file.
        domain_of: The domain of each sub-category.
        fallback: The sub-categories of queries without a keyword.
        keywords: The keywords of each sub-category, in lower case; between spaces if they are ASCII words.

    Example:
        load_taxonomy().by_keywords("Find the area of the triangle.", has_images=True)  # geometry
    """

    domains: dict[str, dict[str, Subcategory]]
    domain_of: dict[str, str]
    fallback: Fallback
    keywords: dict[str, list[str]]

    def by_keywords(self, query: str, has_images: bool) -> tuple[str, list[str]]:
        """Find the sub-category whose keywords have the most words in a query.

        A phrase counts as often as it has words; among equal sub-categories the first one wins. Only the
        beginning and the end of a long query are searched.

        Returns:
            The sub-category, and those of its keywords that occur in the query.
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
        """Return a list of all sub-categories with their descriptions, for a model's prompt."""
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
        ConfigError: If the file cannot be read, or has problems.
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


#: The taxonomy that ships with the package.
SHIPPED = Path(str(files("posttrain").joinpath("curation", "taxonomy.yaml")))


def _spelled(text: str) -> str:
    """Return a text's words in lower case, each between single spaces."""
    return f" {_BETWEEN_WORDS.sub(' ', text.casefold())} "
