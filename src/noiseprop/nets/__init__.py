"""Plain networks with named noise sites; they know nothing of noise."""

from noiseprop.nets.cnn import CNN as CNN
from noiseprop.nets.cnn import cnn as cnn
from noiseprop.nets.mlp import MLP as MLP
from noiseprop.nets.mlp import Activation as Activation
from noiseprop.nets.mlp import mlp as mlp
from noiseprop.nets.resnet import ResNet as ResNet
from noiseprop.nets.resnet import resnet18 as resnet18
from noiseprop.nets.resnet import resnet34 as resnet34
