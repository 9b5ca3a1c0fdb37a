"""Judging a network: statistics, one call that scores it clean, attacked and corrupted, and checks on that call."""

from noiseprop.evaluation.compare import compare as compare
from noiseprop.evaluation.record import Evaluation as Evaluation
from noiseprop.evaluation.record import Finding as Finding
from noiseprop.evaluation.record import Measurement as Measurement
from noiseprop.evaluation.settings import CONDITIONS as CONDITIONS
from noiseprop.evaluation.settings import SETTINGS as SETTINGS
from noiseprop.evaluation.settings import Settings as Settings
from noiseprop.evaluation.statistics import mean_std as mean_std
from noiseprop.evaluation.statistics import paired as paired
from noiseprop.evaluation.statistics import welch as welch
from noiseprop.evaluation.statistics import wilson as wilson
from noiseprop.evaluation.storage import read as read
from noiseprop.evaluation.storage import write as write
from noiseprop.evaluation.suite import evaluate as evaluate
from noiseprop.evaluation.summary import summary as summary
from noiseprop.evaluation.trust import trust as trust
