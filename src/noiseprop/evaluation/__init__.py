"""Evaluation of networks: clean, attacked and corrupted accuracy, sanity checks, and statistics to compare networks."""

from noiseprop.evaluation.compare import compare as compare
from noiseprop.evaluation.evaluate import evaluate as evaluate
from noiseprop.evaluation.results import Evaluation as Evaluation
from noiseprop.evaluation.results import Finding as Finding
from noiseprop.evaluation.results import Measurement as Measurement
from noiseprop.evaluation.sanity_checks import run_sanity_checks as run_sanity_checks
from noiseprop.evaluation.serialization import read_evaluation as read_evaluation
from noiseprop.evaluation.serialization import write_evaluation as write_evaluation
from noiseprop.evaluation.settings import CONDITIONS as CONDITIONS
from noiseprop.evaluation.settings import SETTINGS as SETTINGS
from noiseprop.evaluation.settings import Settings as Settings
from noiseprop.evaluation.statistics import mean_std as mean_std
from noiseprop.evaluation.statistics import paired as paired
from noiseprop.evaluation.statistics import welch as welch
from noiseprop.evaluation.statistics import wilson as wilson
from noiseprop.evaluation.text_summary import format_summary as format_summary
