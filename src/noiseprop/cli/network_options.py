"""Noisy network under test in `check` and `bench`: a named or a user-defined one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from noiseprop.noise.layer import Granularity, Init


@dataclass(frozen=True)
class Subject:
    """Noisy network with the shape (C, H, W) of its images and its number of classes."""

    model: "nn.Module"
    image: tuple[int, ...]
    classes: int

    def make_batch(self, count: int) -> "tuple[Tensor, Tensor]":
        """Return the same random images in [0, 1] and random labels at each call, on the network's device."""
        import torch

        from noiseprop.evaluation.scoring import model_device

        generator, device = torch.Generator().manual_seed(0), model_device(self.model)
        x = torch.rand(count, *self.image, generator=generator)
        return x.to(device), torch.randint(self.classes, (count,), generator=generator).to(device)


def build_subject(
    model: str, data: str | None, noise: tuple[str, ...], granularity: "Granularity", init: "Init"
) -> Subject:
    """Build a noisy network to test.

    Args:
        model: name of a network, or module:function.
        data: data set that sets the image shape and the classes of a user-defined network.
        noise: where a user-defined network gets noise; if empty, everywhere, unless it has noise already.
        granularity: granularity of that noise.
        init: initial sigma of that noise.

    Raises:
        InputError: the network does not exist, or does not take such images.
        DataError: the data are missing or damaged.
    """
    from noiseprop.errors import InputError
    from noiseprop.models.registry import build, get_architecture
    from noiseprop.models.user_model import is_user_model, make_user_model
    from noiseprop.noise.attach.add_noise import is_noisy

    if not is_user_model(model):
        plain = get_architecture(model)
        if noise or data is not None:
            raise InputError(f"the name {model} fixes noise and images; --noise and --data are for module:function")
        return Subject(build(model), plain.image, plain.classes)
    image, classes = _find_image_form("mnist" if data is None else data)
    options: dict[str, Any] = {"image": image, "classes": classes, "granularity": granularity, "init": init}
    net = make_user_model(model, noise=noise, **options)
    if not is_noisy(net):
        net = make_user_model(model, noise=("all",), **options)
    return Subject(net, image, classes)


def _find_image_form(data: str) -> tuple[tuple[int, ...], int]:
    """Return the image shape and the number of classes of a data set; only user data are read for this."""
    from noiseprop.data import load
    from noiseprop.data.load import IMAGE_FORMS, resolve_user_data

    if resolve_user_data(data) is None:
        return IMAGE_FORMS[data]
    dataset = load(data)
    return tuple(dataset.images.shape[1:]), len(dataset.classes)
