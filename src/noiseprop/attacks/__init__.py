"""Attacks in pixel space on the true label, fit for random networks: they climb the loss expected over the noise."""

from noiseprop.attacks.fgsm import fgsm as fgsm
from noiseprop.attacks.pgd import pgd as pgd
