"""Judging a network: statistics, one call that scores it clean, attacked and corrupted, and checks on that call."""

from noiseprop.evaluation.compare import compare as compare
from noiseprop.evaluation.evaluate import evaluate as evaluate
from noiseprop.evaluation.results import Evaluation as Evaluation
from noiseprop.evaluation.results import Finding as Finding
from noiseprop.evaluation.results import Measurement as Measurement
from noiseprop.evaluation.sanity_checks import trust as trust
from noiseprop.evaluation.serialization import read as read
from noiseprop.evaluation.serialization import write as write
from noiseprop.evaluation.settings import CONDITIONS as CONDITIONS
from noiseprop.evaluation.settings import SETTINGS as SETTINGS
from noiseprop.evaluation.settings import Settings as Settings
from noiseprop.evaluation.statistics import mean_std as mean_std
from noiseprop.evaluation.statistics import paired as paired
from noiseprop.evaluation.statistics import welch as welch
from noiseprop.evaluation.statistics import wilson as wilson
from noiseprop.evaluation.text_summary import summary as summary
