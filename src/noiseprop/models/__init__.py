"""Networks of the paper without noise, with named sites where `noiseprop.models.registry` adds it."""

from noiseprop.models.cnn import CNN as CNN
from noiseprop.models.cnn import cnn as cnn
from noiseprop.models.mlp import MLP as MLP
from noiseprop.models.mlp import Activation as Activation
from noiseprop.models.mlp import mlp as mlp
from noiseprop.models.resnet import ResNet as ResNet
from noiseprop.models.resnet import resnet18 as resnet18
from noiseprop.models.resnet import resnet34 as resnet34
