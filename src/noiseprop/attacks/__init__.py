"""Attacks in pixel space on the true label, suited to random networks: they climb the loss expected over the noise."""

from noiseprop.attacks.apgd import apgd as apgd
from noiseprop.attacks.fgsm import fgsm as fgsm
from noiseprop.attacks.lbfgs import lbfgs as lbfgs
from noiseprop.attacks.lbfgs import lbfgs_szegedy as lbfgs_szegedy
from noiseprop.attacks.pgd import pgd as pgd
from noiseprop.attacks.spsa import spsa as spsa
from noiseprop.attacks.square import square as square
from noiseprop.attacks.transfer import Attack as Attack
from noiseprop.attacks.transfer import Transferred as Transferred
from noiseprop.attacks.transfer import transfer as transfer
