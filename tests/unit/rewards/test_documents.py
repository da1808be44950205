"""Page parsing: both formats, the three parts, and hostile pages."""

import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from posttrain.types import Box, RewardInput, Score
from rewards.builtin.documents import WEIGHTS, document_parsing
from rewards.reading.documents import PageBlock, page_text, parse_page, read_bbox, reading_order

HTML = """<html><body>
<h1 data-bbox="100 50 900 120">Notes &amp; queries</h1>
<ol data-bbox="100 150 900 400"><li data-bbox="120 160 880 220">first item</li>
<li data-bbox="120 240 880 300">second item</li></ol>
<ul data-bbox="0 0 50 50"><li>plain</li><li>items</li></ul>
<div class="image caption" data-bbox="100 450 900 800">
<img data-bbox="100 450 900 700"/><p>A winter <b>morn</b>ing</p></div>
<style>.table1 {color: red}</style>
<table data-bbox="100 820 900 950" class="table1"><tr><td>x</td><td>1</td></tr></table>
<img data-bbox="5 5 9 9"><p>loose text<p>more
</body></html>"""
MARKDOWN = """# Notes & queries

<!-- Image (100, 120, 480, 400) -->
A winter **morning**
in the `north`.

<!-- Table (100, 450, 900, 700) -->
\\begin{table}[h]\\centering
\\begin{tabular}{lr} a & 1 \\\\

b & \\multicolumn{2}{c}{2} \\\\ \\end{tabular}
\\end{table}
- first item
- second item

<!-- Table (1, 2, 3, 4) -->
| c | d |
|---|---|
| 3 | <i>4</i> |
<!-- Table (5, 6, 7, 8) -->"""
HTML_BLOCKS = [
    PageBlock("Notes & queries", "100 50 900 120"),
    PageBlock("first item", "120 160 880 220"),
    PageBlock("second item", "120 240 880 300"),
    PageBlock("plain items", "0 0 50 50"),
    PageBlock("A winter morning", "100 450 900 800"),
    PageBlock("x 1", "100 820 900 950"),
    PageBlock("", "5 5 9 9"),
    PageBlock("loose text"),
    PageBlock("more"),
]
MARKDOWN_BLOCKS = [
    PageBlock("Notes & queries"),
    PageBlock("", "100, 120, 480, 400"),
    PageBlock("A winter morning in the north."),
    PageBlock("a 1 b 2", "100, 450, 900, 700"),
    PageBlock("first item"),
    PageBlock("second item"),
    PageBlock("c d 3 4", "1, 2, 3, 4"),
    PageBlock("", "5, 6, 7, 8"),
]


def score(gold: Any, answer: str, columns: dict[str, Any] | None = None, family: str = "qwen3_vl") -> Score:
    x = RewardInput((), (), answer, ground_truth=gold, columns=columns or {})
    result = document_parsing(x, family=family)
    assert result is not None
    return result


def page(*blocks: tuple[str, str]) -> str:
    return "".join(f'<p data-bbox="{box}">{text}</p>' for text, box in blocks)


TWO = page(("the first half", "0 0 500 1000"), ("and the second", "500 0 1000 1000"))


def test_both_formats_give_blocks() -> None:
    assert parse_page(HTML) == HTML_BLOCKS
    assert parse_page(MARKDOWN) == MARKDOWN_BLOCKS
    assert page_text(parse_page(TWO)) == "the first half and the second"


def test_misnested_and_unclosed_elements() -> None:
    assert parse_page('<div><p data-bbox="1 1 2 2">a<p data-bbox="1 2 2 3">b</div></span><p>c') == [
        PageBlock("a", "1 1 2 2"),
        PageBlock("b", "1 2 2 3"),
        PageBlock("c"),
    ]
    assert parse_page("<h1 data-bbox>a</h1>") == [PageBlock("a", "")]


def test_boxes() -> None:
    assert read_bbox(" 1, 2.5,3  4", "norm_1000") == Box(1, 2.5, 3, 4, "norm_1000")
    for broken in ("", "1 2 3", "1 2 3 4 5", "3 2 1 4", "1 2 1 4", "nan 0 1 1", "1e9 0 inf 1", "١ ٢ ٣ ٤"):
        assert read_bbox(broken, "norm_1000") is None


def test_parts_worked_out_by_hand() -> None:
    assert score(TWO, TWO) == Score(
        1.0, {"text": 1, "layout": 1, "order": 1}, "2 blocks, the reference has 2"
    )
    # The first box is half as high, and a third box is invented: 2 · (0.5 + 1) / (3 + 2).
    answer = page(("the first half", "0 0 500 500"), ("and the second", "500 0 1000 1000"), ("", "0 0 9 9"))
    assert score(TWO, answer).parts == pytest.approx({"text": 1, "layout": 0.6, "order": 1})
    # One pair, in the wrong order.
    swapped = page(("and the second", "500 0 1000 1000"), ("the first half", "0 0 500 1000"))
    parts = score(TWO, swapped).parts
    assert (parts["layout"], parts["order"]) == (1, 0)
    assert score(TWO, swapped).value == pytest.approx(
        sum(WEIGHTS[name] * part for name, part in parts.items())
    )


def test_parts_that_do_not_apply_leave_their_weight() -> None:
    assert score("One line", "One line").parts == {"text": 1}
    assert score("# A\n\nB text", "# A\n\nB text").parts == {"text": 1, "order": 1}
    picture = '<img data-bbox="0 0 500 500"/>'
    assert score(picture, picture).parts == {"text": 1, "layout": 1}
    assert score(picture, "a description").value == 0


def test_frames() -> None:
    gold = {"text": page(("abc", "0 0 400 200")), "frame": "pixel_original"}
    answer = page(("abc", "0 0 500 500"))
    assert score(gold, answer, {"image_size": [800, 400]}).value == 1.0
    with pytest.raises(ValueError, match="image_size"):
        score(gold, answer)
    assert score(gold["text"], gold["text"], family="qwen2_5_vl").value == 1.0


words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"]


@settings(max_examples=60, deadline=None)
@given(st.permutations(words))
def test_order_is_kendalls_tau(shuffled: list[str]) -> None:
    reference = [PageBlock(word) for word in words]
    answer = [PageBlock(word) for word in shuffled]
    tau: Any = kendalltau(range(len(words)), [shuffled.index(word) for word in words])[0]
    assert reading_order(reference, answer) == pytest.approx(max(0.0, tau))


def test_order_with_missing_and_equal_blocks() -> None:
    reference = [PageBlock(word) for word in words]
    assert reading_order(reference, reference[:3]) == pytest.approx(3 / 15)
    assert reading_order(reference, []) == 0
    same = [PageBlock("yes"), PageBlock("no"), PageBlock("yes"), PageBlock("yes"), PageBlock("no")]
    assert reading_order(same, same) == 1.0


blocks = st.lists(
    st.tuples(st.text("ab <&", max_size=6), st.sampled_from(["0 0 9 9", "5 5 30 40", "x"])), max_size=4
)


@settings(max_examples=150, deadline=None)
@given(blocks)
def test_properties(written: list[tuple[str, str]]) -> None:
    answer = page(*written)
    for gold in (TWO, MARKDOWN.replace("5, 6, 7, 8", "5, 6, 9, 9"), HTML):
        value = score(gold, answer).value
        assert 0 <= value <= 1
        assert score(gold, f"\n {answer}\t").value == value
        assert score(gold, gold).value == 1.0
        assert score(gold, "").value == 0.0


def test_boxes_without_text_earn_nothing() -> None:
    flood = "".join(f'<img data-bbox="{i} 0 {i + 500} 1000">' for i in range(400))
    assert score(TWO, flood).value == 0.0
    assert score(TWO, page(("", "0 0 500 1000"), ("", "500 0 1000 1000"))).value == 0.0
    assert score(TWO, "the first half and the second" + flood).parts["layout"] < 0.02


HOSTILE = {
    "nested elements": "<div>" * 100_000,
    "nested, just small enough": "<div>" * 10_000 + "</p>" * 10_000,
    "a megabyte": "<p data-bbox='0 0 9 9'>a</p>" * 36_000,
    "blocks": "<p data-bbox='0 0 9 9'>a</p>" * 3_400,
    "blocks, just few enough": f"<p data-bbox='0 0 9 9'>{'xyz ' * 40}</p>" * 499,
    "unfinished tags": "<p>" + "<a " * 33_000,
    "unfinished comments": "<!-- Image (" * 8_000,
    "places": "<!-- Image (1,2,3,4) -->" * 4_000,
    "breaks": "<p data-bbox='0 0 9 9'>" + "<br>" * 24_000,
    "styles": "<style>" * 14_000,
    "lines": "- a\n" * 24_000,
    "pictures": "![" * 50_000,
    "noise": "".join(random.Random(0).choices("<>/!-|\\{}&;#`* \n'\"p", k=90_000)),
    "half a surrogate pair": "\ud800 " * 40_000,
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pages_earn_little_and_cost_little(answer: str) -> None:
    begun = time.thread_time()
    assert 0 <= score(HTML.replace("<p>loose text<p>more", ""), answer).value < 0.1
    assert time.thread_time() - begun < 1


def test_a_dataset_at_fault() -> None:
    assert document_parsing(RewardInput((), (), TWO), family="qwen3_vl") is None
    broken_box = page(("a", "9 9 1 1"))
    for broken in (
        "",
        "<html></html>",
        5,
        {"frame": "norm_1000"},
        {"text": "a", "size": 1},
        broken_box,
        "a\n\n" * 501,
    ):
        with pytest.raises(ValueError, match="ground_truth"):
            score(broken, TWO)
    with pytest.raises(ValueError, match="frame"):
        score({"text": "a", "frame": "metres"}, TWO)
    with pytest.raises(ValueError, match="family"):
        score(TWO, TWO, family="gpt")
