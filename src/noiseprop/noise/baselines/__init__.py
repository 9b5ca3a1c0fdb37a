"""Published noise layers for comparison, written from their papers, with independent noise for every sample.

`shared=True` draws one noise for the whole batch instead, as several of the released implementations do. Gradients that
are averaged over copies in one batch then see a single draw. All layers are placed, sampled and removed like those of
`add_noise`.
"""

from noiseprop.noise.baselines.learn2perturb import learn2perturb as learn2perturb
from noiseprop.noise.baselines.neftune import neftune as neftune
from noiseprop.noise.baselines.pni import pni as pni
from noiseprop.noise.baselines.rse import rse as rse
from noiseprop.noise.baselines.rse import self_ensemble as self_ensemble
from noiseprop.noise.baselines.variational_dropout import DropoutKL as DropoutKL
from noiseprop.noise.baselines.variational_dropout import variational_dropout as variational_dropout
