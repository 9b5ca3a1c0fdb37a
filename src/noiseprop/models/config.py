"""Records of how a model is made, as run folders hold them, and the models made from them."""

from typing import Annotated

import msgspec
from torch import nn

from noiseprop.models.registry import RegisteredModelConfig, build
from noiseprop.models.user_model import UserModelConfig, make_user_model


class PythonModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="python"):
    """Model that was passed to `train` as an object, so that a run folder alone cannot make it.

    Attributes:
        name: name of its class.
    """

    name: Annotated[str, msgspec.Meta(max_length=1000)]


ModelConfig = RegisteredModelConfig | UserModelConfig | PythonModelConfig
"""Record of how a model is made; its field `kind` distinguishes the three."""


def make_model(config: RegisteredModelConfig | UserModelConfig) -> nn.Module:
    """Return a new model as `build` or `make_user_model` makes it; user code runs for the latter.

    Raises:
        InputError: the registry has no such model, or the user's function fails.
    """
    options = msgspec.structs.asdict(config)
    return build(**options) if isinstance(config, RegisteredModelConfig) else make_user_model(**options)
