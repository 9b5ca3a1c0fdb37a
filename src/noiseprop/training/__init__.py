"""Algorithm 1 with checkpoints: weights and sigma learn together, and an interrupted run resumes bit-identically."""

from noiseprop.training.checkpoint import load_model as load_model
from noiseprop.training.checkpoint import save_model as save_model
from noiseprop.training.loop import train as train
from noiseprop.training.metrics import Epoch as Epoch
from noiseprop.training.metrics import SigmaStatistics as SigmaStatistics
from noiseprop.training.metrics import loss_and_accuracy as loss_and_accuracy
from noiseprop.training.recipes import TABLE_1 as TABLE_1
from noiseprop.training.recipes import Precision as Precision
from noiseprop.training.recipes import Recipe as Recipe
from noiseprop.training.recipes import fast as fast
from noiseprop.training.run_folder import read_config as read_config
from noiseprop.training.run_folder import read_metrics as read_metrics
