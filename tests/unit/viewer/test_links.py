"""The ways from a figure to the episodes that it is a mean of, and to their raw rows."""

import json
import re

from tests.unit.viewer.pages import copy_of, page_of, rollout_files, rows_of


def test_leads_from_a_point_of_a_chart_to_the_episodes_of_its_step(finished_run, page):
    """A strip leads to the last step that it covers: of sixty steps the first shares one with the second."""
    steps = {path.relative_to(finished_run).as_posix() for path in rollout_files(finished_run)}
    links = [str(link["href"]) for link in page.all("a")]
    pressed = {link.removeprefix("./") for link in links if "/step-" in link}
    assert pressed == {step for step in steps if "/step-" in step} - {"rollouts/rl/step-1.jsonl"}
    assert links.count("./rollouts/rl/step-2.jsonl") > 5  # of every chart, and of its cards
    assert "./rollouts/rl/" in links
    assert {"./" + step for step in steps if "evaluation" in step} <= set(links)


def test_a_card_tells_its_raw_row(finished_run, page):
    raw = [text for text in page.texts["pre"] if text.startswith("{")]
    assert len(raw) == 12
    places = re.findall(r"rollouts/[\w/.-]+\.jsonl:\d+", page.visible)
    assert len(places) == 12
    for text, place in zip(raw, places, strict=True):
        file, _, line = place.rpartition(":")
        assert json.loads(text) == rows_of(finished_run / file)[int(line) - 1]


def test_a_name_of_a_stage_cannot_make_a_link_of_its_own(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    (run / "rollouts" / "rl").rename(run / "rollouts" / '"><a href=javascript:x>#?')
    page_of(run)
