import re

import pytest

from noiseprop.report.svg import FRAME, Series, assign_styles, draw_chart


def draw(x, *series, **options):
    return draw_chart("title", x, series, assign_styles([s.name for s in series]), x_label="x", y_label="y", **options)


def test_the_ends_of_the_axes_are_the_ends_of_the_frame():
    drawn = draw([0, 10, 20], Series("a", [0, 0.5, 1]), fraction=True)
    (line,) = drawn.lines
    middle = (FRAME["left"] + FRAME["right"]) / 2, (FRAME["top"] + FRAME["base"]) / 2
    assert line.points == ((0, FRAME["left"], FRAME["base"]), (1, *middle), (2, FRAME["right"], FRAME["top"]))
    assert drawn.y_ticks[0] == (FRAME["base"], "0")
    assert drawn.y_ticks[-1] == (FRAME["top"], "1")


def test_what_a_line_has_not_is_left_out_and_said():
    drawn = draw(
        [1, 2, 3], Series("a", [0.5, None, 0.7]), Series("b", [0.1, 0.2, 0.3], [0.0, 0.1, 0.2], [0.2, 0.3, 0.4])
    )
    a, b = drawn.lines
    assert [row for row, _, _ in a.points] == [0, 2]
    assert a.band == ""
    assert len(re.findall(r"[-\d.]+ [-\d.]+", b.band)) == 6
    assert [cells for _, _, cells in drawn.rows] == [
        ("0.500", "0.100 [0.000, 0.200]"),
        ("–", "0.200 [0.100, 0.300]"),
        ("0.700", "0.300 [0.200, 0.400]"),
    ]


def test_ticks_are_round_and_enclose_the_values():
    drawn = draw([1, 30], Series("a", [0.013, 0.87]))
    texts = [float(text) for _, text in drawn.y_ticks]
    assert texts[0] <= 0.013 < 0.87 <= texts[-1]
    assert all(text == round(text, 2) for text in texts)
    assert all(FRAME["left"] <= x <= FRAME["right"] for x, _ in drawn.x_ticks)


@pytest.mark.parametrize("values", [[0.5], [0.0], [-3.0], [1e-9], [None]])
def test_a_single_point_or_none_can_be_drawn(values):
    drawn = draw([1], Series("a", values))
    heights = [y for y, _ in drawn.y_ticks]
    assert heights == sorted(heights, reverse=True)
    assert all(FRAME["top"] <= y <= FRAME["base"] for _, _, y in drawn.lines[0].points)


def test_long_lines_are_thinned_but_keep_their_ends():
    drawn = draw(range(1, 5001), Series("a", [1 / i for i in range(1, 5001)]))
    assert len(drawn.rows) == len(drawn.lines[0].points) == 200
    assert (drawn.rows[0][0], drawn.rows[-1][0]) == ("1", "5000")
    assert not drawn.lines[0].marked


def test_names_have_looks_of_their_own_beyond_the_palette():
    look = assign_styles([f"run {i}" for i in range(28)])
    assert len({(style.colour, style.dash) for style in look.values()}) == 28
    assert all(1 <= style.colour <= 7 for style in look.values())
