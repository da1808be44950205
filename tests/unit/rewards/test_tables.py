"""TEDS: three formats, one tree; distances worked out by hand and by another algorithm; hostile tables."""

import functools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from posttrain.types import RewardInput
from rewards.builtin.tables import table_similarity
from rewards.reading.tables import (
    MAX_NODES,
    MAX_SPAN,
    Cell,
    Table,
    TableTooLarge,
    latex_spans,
    parse_table,
    teds,
)

HTML = "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>"
TWO_BY_TWO = [[Cell("a"), Cell("b")], [Cell("1"), Cell("2")]]


def score(gold: Any, answer: str, **params: Any) -> float:
    result = table_similarity(RewardInput((), (), answer, ground_truth=gold), **params)
    assert result is not None
    return result.value


@pytest.mark.parametrize(
    "text",
    [
        HTML,
        "<table><thead><tr><th>a<th>b</thead><tbody></tbody><tr><td>1<td>2</table>",
        "<TABLE><tr></tr><tr><td> a </td><td>b<br></td></tr><td>1</td><td><p>2</p></td></TABLE>",
        "See:\n```html\n" + HTML + "\n```",
        "<table><tr><td>x</td></tr></table>" + HTML,
        "|a|b|\n|-|-|\n|1|2|",
        "a | b\n:-- | --:\n1 | 2 | 3\n\ntext",
        "\\begin{tabular}{ll}a&b\\\\\\hline 1&2\\\\[2pt]\\end{tabular}",
        "\\begin{tabular*}{9cm}[t]{ll}\\toprule \\textbf{a}&{b} \\\\ % note\n\\midrule $1$ & \\emph{2}\\\\",
        "\\begin{longtable}{@{}l|p{2cm}@{}}a & b \\tabularnewline 1 & \\makecell{2\\\\}\\end{longtable}",
    ],
)
def test_one_table_in_many_spellings(text: str) -> None:
    assert parse_table(text) == TWO_BY_TWO


def test_spans() -> None:
    latex = (
        "\\begin{tabular}{lll}\\multirow{2}{*}{m} & \\multicolumn{2}{c|}{acc} \\\\ \\cline{2-3}"
        " & dev & 5\\% \\& 6 \\\\ \\multicolumn{2}{l}{\\multirow[t]{3}{1cm}[2pt]{x}} & \\\\ \\end{tabular}"
    )
    html = (
        "<table><tr><td rowspan=2>m<td colspan='2'>acc<tr><td>dev<td>5% &amp; 6"
        "<tr><td colspan=2 rowspan=3>x<td></table>"
    )
    assert parse_table(latex) == parse_table(html)
    wide = parse_table("<table><td colspan=1000000000 rowspan=-2>x<td colspan=two>y</table>")
    assert wide == [[Cell("x", colspan=MAX_SPAN), Cell("y")]]


def test_tables_inside_cells_and_bars_inside_text() -> None:
    assert parse_table("<table><tr><td>a<table><tr><td>b</td></tr></table>c</td></tr></table>") == [
        [Cell("a b c")]
    ]
    assert parse_table(
        "\\begin{tabular}{l}\\begin{tabular}[c]{@{}c@{}}a\\\\b\\end{tabular}\\end{tabular}"
    ) == [[Cell("a b")]]
    assert parse_table("| a \\| b |\n|---|") == [[Cell("a | b")]]
    assert parse_table("no | table") is None
    assert parse_table("<table></table>") is None
    assert latex_spans("\\begin{array}x\\end{array} y \\begin{tabular}") == [(0, 25), (28, 43)]


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        # One of six nodes changed, all its characters.
        (HTML, HTML.replace("2", "3"), 1 - 1 / 6),
        # Half of the characters of one cell of six nodes.
        (HTML.replace("2", "20"), HTML.replace("2", "21"), 1 - 0.5 / 6),
        # A row with its two cells removed.
        (HTML, "<table><tr><td>a</td><td>b</td></tr></table>", 1 - 3 / 6),
        # A cell added: seven nodes.
        (HTML, HTML.replace("</td></tr>", "</td><td>9</td></tr>"), 1 - 1 / 7),
        # A span that differs costs as much as another cell.
        (HTML, HTML.replace("<td>2", "<td colspan=2>2"), 1 - 1 / 6),
        # Two rows joined: both removed, and one put above all four cells.
        (HTML, "<table><tr><td>a</td><td>b</td><td>1</td><td>2</td></tr></table>", 1 - 3 / 6),
        # One cell against two rows of two: all but row and cell added.
        (HTML, "<table><tr><td>a</td></tr></table>", 1 - 4 / 6),
    ],
)
def test_distances_worked_out_by_hand(gold: str, answer: str, value: float) -> None:
    assert score(gold, answer) == pytest.approx(value)
    assert score(answer, gold) == pytest.approx(value)


def test_structure_only() -> None:
    other = HTML.replace(">a<", ">x<").replace("1", "7")
    assert score(HTML, other) < 1
    assert score(HTML, other, structure_only=True) == 1.0
    assert score(HTML, HTML.replace("<td>2", "<td rowspan=2>2"), structure_only=True) == pytest.approx(5 / 6)


cells = st.builds(Cell, st.sampled_from(["", "a", "ab", "bc"]), st.integers(1, 2))
tables = st.lists(st.lists(cells, min_size=1, max_size=3), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(tables, tables)
def test_equal_to_the_recursive_definition(first: Table, second: Table) -> None:
    size = max(len(table) + sum(map(len, table)) for table in (first, second))
    expected = max(0.0, 1 - forest_distance(forest(first), forest(second)) / size)
    assert teds(first, second) == pytest.approx(expected)
    assert teds(first, first) == 1.0


Forest = tuple[tuple[Cell | None, "Forest"], ...]


def forest(table: Table) -> Forest:
    return tuple((None, tuple((cell, ()) for cell in row)) for row in table)


@functools.cache
def forest_distance(first: Forest, second: Forest) -> float:
    """The distance of ordered forests by its definition on the rightmost trees."""
    if not first and not second:
        return 0.0
    options = []
    if first:
        options.append(forest_distance(first[:-1] + first[-1][1], second) + 1)
    if second:
        options.append(forest_distance(first, second[:-1] + second[-1][1]) + 1)
    if first and second:
        (a, below_a), (b, below_b) = first[-1], second[-1]
        change = forest_distance(first[:-1], second[:-1]) + forest_distance(below_a, below_b)
        options.append(change + cost(a, b))
    return min(options)


def cost(a: Cell | None, b: Cell | None) -> float:
    if a is None or b is None:
        return float(a is not b)
    return Levenshtein.normalized_distance(a.text, b.text) if a.colspan == b.colspan else 1.0


PIECES = (
    *("<table>", "<tr>", "<td colspan=2>", "</td>", "<", "|", "-", "\n", "a", "\\begin{tabular}", "{l}", "&"),
    *("\\\\", "\\end{tabular}", "\\multirow{2}", "%"),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_text_gets_a_score_in_range(answer: str) -> None:
    value = score(HTML, answer)
    assert 0 <= value <= 1
    assert score(HTML, f" \n{answer}\t") == value


HOSTILE = {
    "nested elements": "<div>" * 100_000,
    "nested tables": "<table><tr><td>" * 6_000,
    "breaks": "<table><tr><td>" + "<br>" * 20_000,
    "a megabyte of cells": "<table>" + "<td>" * 260_000,
    "huge spans": "<table>" + "<tr><td colspan=1000000000 rowspan=1000000000>" * 190,
    "unfinished tags": "<table>" + "<a " * 33_000,
    "unfinished comments": "<table>" + "<!--" * 24_000,
    "unfinished quotes": "<table>" + '<a b="' * 16_000,
    "bars": "|a|\n|-|\n" * 11_000,
    "columns": "\\begin{tabular}{l}" + "&" * 99_000,
    "nested LaTeX": "\\begin{tabular}" * 6_000,
    "nested arguments": "\\begin{tabular}{l}" + "\\multicolumn{2}{c}{" * 4_900,
    "covered cells": "\\begin{tabular}{l}" + "\\multicolumn{1000}{c}{\\multirow{999}{*}{x}}\\\\" * 190,
    "just small enough": "<table>" + "<tr><td>q</td></tr>" * 200 + "</table>",
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tables_earn_little_and_cost_little(answer: str) -> None:
    begun = time.thread_time()
    assert 0 <= score(HTML, answer) < 0.2
    assert time.thread_time() - begun < 3  # the longest takes 0.3 s; quadratic time would be minutes


def test_limits() -> None:
    row = "<tr>" + "<td>1</td>" * (MAX_NODES // 4 - 1) + "</tr>"
    assert score(f"<table>{row * 4}</table>", f"<table>{row * 4}</table>") == 1.0
    with pytest.raises(TableTooLarge):
        parse_table(f"<table>{row * 5}</table>")
    assert score(HTML, f"<table>{row * 5}</table>") == 0.0


def test_a_dataset_at_fault() -> None:
    assert table_similarity(RewardInput((), (), HTML)) is None
    row = "<tr>" + "<td>1</td>" * 99 + "</tr>"
    for broken in ("", "no table", "<table></table>", 5, [HTML], f"<table>{row * 5}</table>"):
        with pytest.raises(ValueError, match=r"ground_truth|rows and cells"):
            score(broken, HTML)
