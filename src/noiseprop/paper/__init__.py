"""The paper's reproduction, built only from the other rooms."""

from noiseprop.paper.variants import NAMES as NAMES
from noiseprop.paper.variants import build as build
