"""The source keeps the house style: each measured figure stays within its limit."""

import ast

import pytest
from tests import house_style
from tests.house_style import LIMITS, measure

FIGURES = measure()


@pytest.mark.parametrize("name", LIMITS)
def test_figure_stays_within_its_limit(name):
    figure = FIGURES[name]
    assert figure.value <= LIMITS[name], "\n".join(figure.places[:20])


def test_offenders_are_found(monkeypatch):
    source = {
        "noiseprop.errors": "from noiseprop.cli import main\nX = 1\n",
        "noiseprop.cli": "from noiseprop.errors import X\nX = 2\ndef main():\n    '''What it does.'''\n",
        "noiseprop.noise": "from noiseprop.data import _load\ndef add():\n    '''The sum.'''\n",
        "noiseprop.data": "def _load_all():\n    '''Load all.'''\n",
        "noiseprop.report": "import noiseprop.paper\n",
        "noiseprop.paper": "",
    }
    monkeypatch.setattr(house_style, "modules", lambda: {name: ast.parse(text) for name, text in source.items()})
    figures = measure()
    assert figures["import cycles"].places == ["noiseprop.cli <-> noiseprop.errors"]
    assert [place.split(" ")[0] for place in figures["imports against the direction"].places] == [
        "noiseprop.errors:1",
        "noiseprop.noise:1",
        "noiseprop.report:1",
    ]
    assert figures["one-word function names"].places == ["noiseprop.cli.main:3", "noiseprop.noise.add:2"]
    assert figures["docstrings that start with What, Whether, How or Of"].places == ["noiseprop.cli.main:3"]
    assert figures["docstrings that start with an article (%)"].value == pytest.approx(33.3)
    assert figures["top-level names defined in several modules (%)"].places == ["X: noiseprop.errors, noiseprop.cli"]
    assert figures["dotted or star imports of private names"].places == ["noiseprop.noise:1 _load"]
