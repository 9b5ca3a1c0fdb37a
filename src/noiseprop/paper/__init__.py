"""The paper's reproduction, built only from the other rooms."""

from noiseprop.models.registry import NAMES as NAMES
from noiseprop.models.registry import build as build
