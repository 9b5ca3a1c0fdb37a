"""Corruptions of Hendrycks and Dietterich, batched, and a reader for the released CIFAR-10-C files."""

from noiseprop.corruptions.cifar10_c import read_cifar10_c as read_cifar10_c
from noiseprop.corruptions.corrupt import CHUNK as CHUNK
from noiseprop.corruptions.corrupt import KINDS as KINDS
from noiseprop.corruptions.corrupt import PARAMS as PARAMS
from noiseprop.corruptions.corrupt import SEVERITIES as SEVERITIES
from noiseprop.corruptions.corrupt import corrupt as corrupt
from noiseprop.corruptions.corrupt import corruption_seed as corruption_seed
from noiseprop.corruptions.corrupt import skip as skip
