"""The reference of all keys: every key is described, and whatever one types leads to it."""

import re
from collections.abc import Iterator

import pytest

from posttrain.config import ConfigError
from posttrain.config.base import Section
from posttrain.config.foreign_names import FOREIGN_NAMES
from posttrain.config.reference import Entry, look_up, reference
from posttrain.config.renamed_keys import RENAMED_KEYS
from posttrain.curation import taxonomy

EVERYTHING = [entry for root in reference().values() for entry in root.walk()]


def all_sections(section: type[Section]) -> Iterator[type[Section]]:
    for inner in section.__subclasses__():
        yield inner
        yield from all_sections(inner)


def only(key: str) -> Entry:
    [[entry]] = look_up(key).groups
    return entry


def test_every_section_of_the_project_is_known_here() -> None:
    assert taxonomy.TaxonomyFile in set(all_sections(Section))


@pytest.mark.parametrize("section", dict.fromkeys(all_sections(Section)), ids=lambda each: each.__name__)
def test_every_key_is_described(section: type[Section]) -> None:
    assert section.__doc__
    for name, info in section.model_fields.items():
        assert info.description, f"{section.__name__}.{name} has no description"
        assert info.description.endswith((".", ")")), f"{section.__name__}.{name}"


def test_every_key_has_a_page() -> None:
    for entry in EVERYTHING:
        found = look_up(entry.text)
        assert entry in [each for group in found.groups for each in group] + found.elsewhere


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("seed", "whole number ≥ 0", "0"),
        ("run.seed", "whole number ≥ 0", "0"),
        ("model.dtype", "one of float32, bfloat16", "bfloat16"),
        ("stages[1].dynamic_sampling.max_rounds", "whole number ≥ 1", "3"),
        ("stages.rl.algorithm.sapo.tau_neg", "number > 0", "1.05"),
        ("stages.rl.algorithm", "section", "{name: sapo}"),
        ("evaluation.tasks.rewards", "list of sections (at least 1)", "[{name: answer_accuracy}]"),
        ("evaluation.tasks.stages", "list of names (at least 1)", "[all]"),
        ("dataset.source.path", "text", "absent"),
        ("dataset.columns", "mapping of names to text or null", "absent"),
        ("curation.steps.query.min_chars", "whole number ≥ 1", "1"),
        ("curation.endpoints.base_url", "address", "absent"),
        ("curation.endpoints.<name>.endpoint.base_url", "address", "absent"),
    ],
)
def test_type_bounds_and_default(key: str, kind: str, default: str) -> None:
    entry = only(key)
    assert (entry.kind, entry.default) == (kind, default)


def test_a_union_has_its_variants() -> None:
    assert {each.choice for each in only("stages.rl.algorithm").children} == {
        "name: sapo",
        "name: grpo",
        "name: gspo",
        "name: cispo",
    }
    assert only("curation.steps.pass_rate").choice == "filter: pass_rate"
    assert only("stages.rl").choice == "stage: rl"


def test_a_leaf_is_told_wherever_it_is() -> None:
    texts = [entry.text for group in look_up("learning_rate").groups for entry in group]
    assert len(texts) >= 2
    assert all(text.endswith("learning_rate") for text in texts)
    found = look_up("name")
    assert [entry.text for group in found.groups for entry in group] == ["name"]
    assert "dataset.name" in [entry.text for entry in found.elsewhere]


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("stages.rl.algoritm", "did you mean stages.rl.algorithm?"),
        ("freeze_vision_towr", "did you mean model.freeze_vision_tower?"),
        ("bf16", "set model.dtype: bfloat16"),
        ("xyzzy.qqqq", "`posttrain explain` lists all"),
        ("", "`posttrain explain` lists all"),
        ("...", "`posttrain explain` lists all"),
    ],
)
def test_what_is_no_key_gets_the_nearest(key: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        look_up(key)


def test_every_foreign_and_every_old_name_leads_to_a_key_of_ours() -> None:
    assert look_up("num_generations").note.endswith("elsewhere is called group_size here")
    for name in FOREIGN_NAMES:
        assert look_up(name).groups
    for old, new in RENAMED_KEYS.items():
        if " " not in new:
            assert look_up(new).groups, f"{old} → {new}"
