"""Small models of other packages with random weights, on which `docs/any_network.py` tests add_noise.

The first two samples of each example are equal, so any difference between their outputs is noise. Each builder
imports its own package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Call = tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """Architecture with the noise that it receives.

    Attributes:
        name: of the model.
        kind: of network.
        package: the distribution that holds the model.
        build: makes the model from torch's random state.
        example: makes the inputs, positional or by name.
        where: argument of `add_noise` as Python text; it may use the names `nn` and `before`.
        granularity: of sigma.
        loss: function of the model's output.
    """

    name: str
    kind: str
    package: str
    build: Callable[[], nn.Module]
    example: Callable[[], Call]
    where: str = '"all"'
    granularity: str = "neuron"
    loss: Callable[[Any], Tensor] = lambda output: float_leaves(output)[0].square().mean()


def float_leaves(output: Any) -> list[Tensor]:
    """Return the floating-point tensors of an output that have at least one axis."""
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point() and leaf.dim()]


def twins(*shape: int, words: int = 0) -> Tensor:
    """Return random inputs whose first two samples are equal: normal numbers, or integers below `words`."""
    x = torch.randint(words, shape) if words else torch.randn(shape)
    x[1] = x[0]
    return x


def _own_loss(output: Any) -> Tensor:
    return output.loss


def _labelled(name: str, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    labels[1] = labels[0]
    return {name: x, "labels": labels}


# transformers: built from configurations, without downloads.


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    config.use_cache, config.initializer_range, config.loss_type = False, 0.3, "ForCausalLM"
    model = GPT2LMHeadModel(config)
    model.activation_checkpointing_enable()
    return model


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=4,
            initializer_range=0.3,
        )
    )


def _wav2vec2() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=12,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8, 8, 8),
            conv_kernel=(10, 3, 2),
            conv_stride=(5, 2, 2),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            layerdrop=0.0,
            mask_time_prob=0.0,
            initializer_range=0.3,
        )
    )


def _encodec() -> nn.Module:
    from transformers import EncodecConfig, EncodecModel

    return EncodecModel(
        EncodecConfig(
            num_filters=4,
            hidden_size=16,
            codebook_size=16,
            codebook_dim=16,
            upsampling_ratios=[4, 2],
            target_bandwidths=[15.0, 30.0],
        )
    )


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    )


def _segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=8,
            drop_path_rate=0.0,
        )
    )


# The other packages.


def _transformer() -> nn.Module:
    return nn.Transformer(16, 2, 2, 2, 32, batch_first=True)


def _gcn() -> nn.Module:
    from torch_geometric.nn.models import GCN

    return GCN(8, 16, 2, out_channels=3, dropout=0.1, norm="batch")


def _attentive_fp() -> nn.Module:
    from torch_geometric.nn.models import AttentiveFP

    return AttentiveFP(8, 16, 3, edge_dim=5, num_layers=2, num_timesteps=2)


def _graph() -> Call:
    """20 nodes; the first two have no neighbours."""
    return twins(20, 8), torch.randint(2, 20, (2, 60))


def _molecules() -> Call:
    """Four molecules of 5 atoms each, the first two alike: atoms, bonds, features of bonds, molecule of each atom."""
    inside = torch.randint(5, (2, 12))
    bonds = torch.cat([inside, inside + 5, torch.randint(10, 15, (2, 12)), torch.randint(15, 20, (2, 12))], 1)
    atoms, features = torch.randn(20, 8), torch.randn(48, 5)
    atoms[5:10], features[12:24] = atoms[:5], features[:12]
    return atoms, bonds, features, torch.arange(20) // 5


def _unet() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), num_res_units=1)


def _ft_transformer() -> nn.Module:
    from rtdl_revisiting_models import FTTransformer

    sizes = FTTransformer.get_default_kwargs(n_blocks=2) | {"d_block": 16, "attention_n_heads": 2}
    del sizes["_is_default"]
    return FTTransformer(n_cont_features=5, cat_cardinalities=[3, 4], d_out=2, **sizes)


def _toy_mlp() -> nn.Module:
    from skorch.toy import make_classifier

    return make_classifier(input_units=30, hidden_units=16, num_hidden=2, dropout=0.1)()


ARCHITECTURES = [
    Architecture(
        "GPT2LMHeadModel, activations checkpointed",
        "language model",
        "transformers",
        _gpt2,
        lambda: _labelled("input_ids", twins(4, 12, words=60), torch.randint(60, (4, 12))),
        loss=_own_loss,
    ),
    Architecture(
        "ViTForImageClassification",
        "vision transformer",
        "transformers",
        _vit,
        lambda: _labelled("pixel_values", twins(4, 3, 16, 16), torch.tensor([0, 0, 1, 1])),
        where='"vit.layers.*.mlp.*"',
        loss=_own_loss,
    ),
    Architecture(
        "Wav2Vec2ForCTC",
        "speech: convolutions and a transformer",
        "transformers",
        _wav2vec2,
        lambda: _labelled("input_values", twins(3, 800), torch.tensor([[1, 2], [1, 2], [3, 4]])),
        granularity="channel",
        loss=_own_loss,
    ),
    Architecture(
        "EncodecModel",
        "audio codec with time-first LSTMs",
        "transformers",
        _encodec,
        lambda: {"input_values": twins(3, 1, 400)},
        where='["decoder.layers.*.conv", "decoder.layers.*.lstm"]',
        loss=lambda output: output.audio_values.square().mean(),
    ),
    Architecture(
        "ResNetForImageClassification",
        "convolutional network",
        "transformers",
        _resnet,
        lambda: _labelled("pixel_values", twins(4, 3, 32, 32), torch.tensor([0, 0, 1, 2])),
        where="nn.BatchNorm2d",
        loss=_own_loss,
    ),
    Architecture(
        "SegformerForSemanticSegmentation",
        "segmentation",
        "transformers",
        _segformer,
        lambda: _labelled("pixel_values", twins(4, 3, 32, 32), torch.randint(2, (4, 32, 32))),
        where='"segformer.stages.?"',
        granularity="layer",
        loss=_own_loss,
    ),
    Architecture(
        "nn.Transformer",
        "encoder and decoder",
        "torch",
        _transformer,
        lambda: (twins(4, 7, 16), twins(4, 5, 16)),
    ),
    Architecture("GCN", "graph network; samples are nodes", "torch_geometric", _gcn, _graph, where='"convs.?"'),
    Architecture("AttentiveFP", "recurrent graph network", "torch_geometric", _attentive_fp, _molecules),
    Architecture(
        "UNet",
        "segmentation in 3 dimensions",
        "monai",
        _unet,
        lambda: (twins(3, 1, 8, 8, 8),),
        where="before(nn.PReLU)",
        granularity="channel",
    ),
    Architecture(
        "FTTransformer",
        "transformer for tables",
        "rtdl_revisiting_models",
        _ft_transformer,
        lambda: (twins(6, 5), twins(6, 2, words=3)),
    ),
    Architecture(
        "MLPModule in a scikit-learn pipeline",
        "perceptron",
        "skorch",
        _toy_mlp,
        lambda: (twins(6, 30),),
        where='"linear"',
    ),
]
