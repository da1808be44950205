"""Filters that need no model: what they drop, and that they drop nothing else."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from posttrain.config import ConfigError
from posttrain.config.curation_steps import Step
from posttrain.curation.filters import Context
from posttrain.curation.outcomes import Outcome, RowError
from posttrain.curation.registry import FILTERS
from posttrain.curation.scoring import Scoring
from posttrain.curation.taxonomy import load_taxonomy
from posttrain.first_party import PLUGINS
from posttrain.types import Block, ImageRef, Message, Sample, VideoRef, text_message

REPETITION = "rewards.builtin.repetition:repetition"
MIXING = "rewards.builtin.language:language_mixing"
PROSE = (
    "The two triangles share the side AC, and both angles at A are equal, so the triangles are congruent by"
    " two sides and the angle between them. It follows that BC equals DC, which is 12 centimetres, and the"
    " perimeter of the whole figure is therefore 44 centimetres."
)


def row(response: str | None = None, query: str = "How long is BC?", images: int = 0, **more: Any) -> Sample:
    shown = tuple(Block("image", image=ImageRef(f"/{i}.png")) for i in range(images))
    messages = (Message("user", (*shown, Block("text", text=query))),)
    if response is not None:
        messages += (text_message("assistant", response),)
    return Sample("x", messages, more.pop("ground_truth", None), columns=more)


def outcomes(step: dict[str, Any], rows: Sequence[Sample]) -> list[Outcome]:
    """Return a filter's verdicts on rows."""
    checked = TypeAdapter(Step).validate_python(step)
    with Scoring([ref for _, ref in checked.rewards()], PLUGINS, Path()) as scoring:
        context = Context(load_taxonomy(), scoring, lambda: iter(enumerate(rows)))
        judge = FILTERS[checked.filter](checked, context).judge

        async def judged() -> list[Outcome]:
            return [await judge(number, sample) for number, sample in enumerate(rows)]

        return asyncio.run(judged())


def reasons(step: dict[str, Any], *rows: Sample) -> list[str]:
    return [outcome.reason for outcome in outcomes(step, rows)]


def test_every_step_of_a_recipe_has_a_filter() -> None:
    union = get_args(Step)[0]
    names = [get_args(section.model_fields["filter"].annotation)[0] for section in get_args(union)]
    assert sorted(names) == sorted(FILTERS)


def test_queries() -> None:
    rows = [
        row(query="?!…"),
        row(query="How long is BC?"),
        row(query="how  long is bc?"),
        row(query="How long is BC?", images=1),
        row(query="x" * 300),
        row(query="How long is CD?", ground_truth="12"),
    ]
    found = reasons({"filter": "query", "max_chars": 200}, *rows)
    assert found == ["without content", "", "repeated", "", "too long", ""]
    found = reasons({"filter": "query", "require_ground_truth": True, "drop_repeated": False}, *rows)
    assert found == ["without content", *["nothing to verify by"] * 4, ""]


QUERIES = (
    *(
        "OCR",
        "翻译",
        "要約",
        "번역",
        "ترجمة",
        "हिंदी?",
        "แปล",
        "вод",
        "Ω",
        "é",
        "²",
        "٣",
        "7",
        "🇫🇷→🇩🇪",
        "❓",
        "ß",
        "א",
    ),
)


@pytest.mark.parametrize("query", QUERIES)
def test_a_short_query_in_any_script_is_a_query(query: str) -> None:
    assert reasons({"filter": "query"}, row(query=query, images=1)) == [""]


@pytest.mark.parametrize(
    "query", ["", " ", "?", "…", "。。。", "--", "_", "***", "\u200b", "\ufffd\ufffd", "\u0301", "$$"]
)
def test_marks_alone_are_no_query(query: str) -> None:
    assert reasons({"filter": "query"}, row(query=query, images=1)) == ["without content"]


def film(query: str, *shown: ImageRef | VideoRef) -> Sample:
    blocks = [
        Block("image", image=each) if isinstance(each, ImageRef) else Block("video", video=each)
        for each in shown
    ]
    return Sample(
        "x", (Message("user", (*blocks, Block("text", text=query))), text_message("assistant", "A."))
    )


SHOWN = st.lists(
    st.one_of(
        st.sampled_from("ab").map(lambda name: ImageRef(f"/{name}.png")),
        st.builds(
            VideoRef,
            st.sampled_from([("/a.mp4",), ("/b.mp4",), ("/1.png", "/2.png"), ("/2.png", "/1.png")]),
            start=st.sampled_from([0.0, 1.0]),
            end=st.sampled_from([None, 9.0]),
            fps=st.sampled_from([None, 1.0]),
        ),
    ),
    max_size=2,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["What?", "what?  ", "Why?"]), SHOWN), max_size=5))
def test_queries_are_repeated_if_all_that_is_shown_is_the_same(
    asked: list[tuple[str, list[ImageRef | VideoRef]]],
) -> None:
    rows = [film(query, *shown) for query, shown in asked]
    keys = [(query.strip().lower(), shown) for query, shown in asked]
    expected = ["repeated" if key in keys[:place] else "" for place, key in enumerate(keys)]
    assert reasons({"filter": "query"}, *rows) == expected


@pytest.mark.parametrize("filters", [{"filter": "query"}, {"filter": "response"}, {"filter": "domain"}])
def test_a_row_with_a_video_is_judged_as_one_with_an_image(filters: dict[str, Any]) -> None:
    said = "The ball rolls down the slope and comes to rest at the wall."
    shown = [
        dataclasses.replace(
            film("What happens here?", each),
            messages=(*film("What happens here?", each).messages[:1], text_message("assistant", said)),
        )
        for each in (ImageRef("/a.png"), VideoRef(("/a.mp4",)))
    ]
    of_image, of_video = outcomes(filters, shown)
    assert (of_image.reason, of_image.changes) == (of_video.reason, of_video.changes)
    reward = {"filter": "reward", "reward": {"name": REPETITION}, "min": -0.5}
    assert reasons(reward, *shown) == ["", ""]


@pytest.mark.parametrize(
    ("last", "reason"), [("สามเหลี่ยม มุม ด้าน เท่ากัน", ""), ("the triangles are equal because", "incomplete")]
)
def test_scripts_without_full_stops_need_none(last: str, reason: str) -> None:
    assert reasons({"filter": "response"}, row(f"{PROSE}\n{last}")) == [reason]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (None, "no answer"),
        ("", "no answer"),
        ("<think>So 3 + 4, that is", "no answer"),
        ("<think>3 + 4</think>", "no answer"),
        ("12", ""),
        ("blue", ""),
        ("A cup on a table", ""),
        (PROSE, ""),
        (PROSE.rstrip(".")[:-6], "incomplete"),
        (PROSE + "\n\n12 cm", ""),
        (PROSE + "\n```python\nprint(1)", "incomplete"),
        (PROSE + "\n```python\nprint(1)\n```", ""),
        (PROSE + " \\boxed{\\frac{1}{2}}", ""),
        (PROSE + " \\boxed{\\frac{1}{2}", "incomplete"),
        (PROSE + "\n| a | b |\n|---|---|\n| 1 | 2 |", ""),
        ("所以周长为四十四厘米。" * 20, ""),
        ("<think>3 + 4</think>7</think>8", "bad format"),
        ("It is 7. <think>3</think> 7.", "bad format"),
        ("<think>\n</think>7", "bad format"),
        ("<think>3 + 4 = 7</think>\n\n7", ""),
    ],
)
def test_responses(response: str | None, reason: str) -> None:
    assert reasons({"filter": "response"}, row(response)) == [reason]


def test_responses_of_a_wanted_form() -> None:
    thought, plain = row("<think>3 + 4 = 7</think>\n\n7"), row("7")
    assert reasons({"filter": "response", "thinking": "required"}, thought, plain) == ["", "bad format"]
    assert reasons({"filter": "response", "thinking": "forbidden"}, thought, plain) == ["bad format", ""]
    step = {"filter": "response", "min_reasoning_chars": 10, "max_chars": 100}
    found = reasons(step, thought, plain, row("3 + 4 is seven.\n\n7"), row("7" * 101))
    assert found == ["", "guessed without steps", "", "too long"]
    assert reasons({"filter": "response"}, row("12", finish_reason="length")) == ["truncated"]


def test_a_pair_is_judged_by_its_chosen_response() -> None:
    pair = Sample("p", row().messages, chosen=(text_message("assistant", "12"),), rejected=())
    assert reasons({"filter": "response"}, pair) == [""]


def test_rewards_are_rules() -> None:
    loop = "and then we look at the other side of the triangle again. " * 40
    found = outcomes({"filter": "reward", "reward": REPETITION, "min": 0}, [row(PROSE), row(loop), row("7")])
    assert [outcome.reason for outcome in found] == ["", "below 0", ""]
    assert found[1].scores["value"] == -1.0
    assert found[1].scores["phrases"] > 0.9
    mixed = PROSE + " 因此三角形的周长是四十四厘米，这个答案是正确的，因为两个三角形全等。" * 3
    step = {"filter": "reward", "reward": {"name": MIXING}, "min": -0.05}
    assert reasons(step, row(PROSE), row(mixed)) == ["", "below -0.05"]


def test_wrong_finals_go() -> None:
    rows = [row("So \\boxed{12}.", ground_truth="12"), row("13", ground_truth="12"), row("13")]
    step = {"filter": "reward", "reward": "math", "min": 1}
    assert reasons(step, *rows) == ["", "below 1", ""]
    assert reasons({**step, "unscored": "drop"}, *rows) == ["", "below 1", "not scored"]
    assert reasons({"filter": "reward", "reward": "math", "max": 0}, *rows) == ["above 0", "", ""]


def test_a_reward_that_fails_is_no_verdict() -> None:
    with pytest.raises(RowError, match="math"):
        reasons({"filter": "reward", "reward": "math", "min": 1}, row("12", ground_truth={"a": 1}))
    with pytest.raises(ValueError, match="takes"):
        reasons({"filter": "reward", "reward": {"name": "math", "params": {"x": 1}}, "min": 1}, row("12"))
    with pytest.raises(ValueError, match="groups"):
        reasons({"filter": "reward", "reward": "judge_pairwise", "min": 1}, row("12"))


#: One query of each sub-category, with images or without, as people write them.
QUERIES = {
    "code_debugging": "Fix the bug in this code: it raises an exception when the list is empty.",
    "code_generation": "Write a function that merges two sorted lists.",
    "code_translation": "Rewrite in Rust the following C++ program.",
    "code_understanding": "What is the output of this snippet, and what is its time complexity?",
    "arithmetic_algebra": "Solve for x the equation 3x + 2 = 11.",
    "geometry": "In the figure, find the angle between the chord and the tangent of the circle.",
    "calculus_analysis": "Compute the derivative of sin(x)/x and its limit at 0.",
    "probability_statistics": "Two dice are rolled. What is the probability that the sum is 7?",
    "physics": "A block slides down with friction; what is its acceleration and final velocity?",
    "chemistry": "Balance the chemical reaction and name the acid.",
    "biology_medicine": "Which protein does this gene code for in the cell?",
    "earth_engineering": "How does latitude change the climate, and what of the atmosphere?",
    "text_recognition": "What does the sign say? Read the text.",
    "document_parsing": "Convert this page to Markdown.",
    "charts_tables": "By the bar chart, which year had the steepest trend on the axis?",
    "information_extraction": "Extract the total amount and date from the receipt in JSON.",
    "object_grounding": "Locate the dog and give its bounding box as bbox_2d.",
    "counting": "How many sheep are there? Count them.",
    "spatial_reasoning": "Is the lamp left of the sofa or behind the sofa?",
    "fine_detail": "Zoom in: what color is the tiny logo?",
    "object_recognition": "What animal is this and which breed? Identify it.",
    "description": "Describe the scene and write a caption.",
    "visual_puzzles": "Which comes next in the pattern of this puzzle?",
    "video_understanding": "At what second of the video does the scene change?",
    "interface_operation": "Tap the settings icon in the app and scroll to the menu.",
    "tool_use": "Search the web with the tools available and look up the weather in Oslo.",
    "embodied_planning": "The robot should grasp the mug; plan the steps for its gripper.",
    "writing": "Write a poem about autumn and translate it.",
    "logical_reasoning": "Given the premise, does the conclusion logically follow? Who is lying?",
    "general_knowledge": "Who was the first person on the moon? Tell me about the history of it.",
}


def test_the_shipped_taxonomy_has_8_domains_and_30_subcategories() -> None:
    taxonomy = load_taxonomy()
    assert (len(taxonomy.domains), len(taxonomy.domain_of)) == (8, 30)
    assert list(QUERIES) == list(taxonomy.domain_of)
    assert list(taxonomy.domains["coding"]) == [
        *("code_debugging", "code_generation", "code_translation", "code_understanding")
    ]


@pytest.mark.parametrize(("name", "query"), QUERIES.items())
def test_keywords_tell_the_domain(name: str, query: str) -> None:
    [outcome] = outcomes({"filter": "domain"}, [row(query=query)])
    columns = outcome.changes.columns
    assert columns == {"domain": load_taxonomy().domain_of[name], "subcategory": name}, outcome.note


def test_what_no_keyword_tells_goes_where_the_taxonomy_says() -> None:
    found = outcomes({"filter": "domain", "keep": ["vision"]}, [row(query="Hm.", images=1), row(query="Hm.")])
    assert found[0].changes.columns["subcategory"] == "object_recognition"
    assert found[1].reason == "of another domain"


def test_a_taxonomy_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(
        "fallback: {image: a, text: b}\ndomains:\n  x: {a: {description: A}}\n  y: {a: {description: A}}\n"
    )
    with pytest.raises(ConfigError, match="'a' is there twice"):
        load_taxonomy(str(file))
    file.write_text("fallback: {image: a, text: b}\ndomains:\n  x: {a: {description: A}}\n")
    with pytest.raises(ConfigError, match="no sub-category 'b'"):
        load_taxonomy(str(file))
    assert "did you mean mathematics" in load_taxonomy().unknown(["science", "mathematic"])
    assert load_taxonomy().unknown([]) == ""
