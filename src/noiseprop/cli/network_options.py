"""The network that `check` and `bench` look at: by name or of the user's own, with noise, for images of some form."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from noiseprop.noise.layer import Granularity, Init


@dataclass(frozen=True)
class Subject:
    """A noisy network, the form (C, H, W) of its images, and how many classes it tells apart."""

    model: "nn.Module"
    image: tuple[int, ...]
    classes: int

    def batch(self, count: int) -> "tuple[Tensor, Tensor]":
        """Random images in [0, 1] and random labels, the same each time, where the network computes."""
        import torch

        from noiseprop.evaluation.scoring import model_device

        generator, device = torch.Generator().manual_seed(0), model_device(self.model)
        x = torch.rand(count, *self.image, generator=generator)
        return x.to(device), torch.randint(self.classes, (count,), generator=generator).to(device)


def subject(model: str, data: str | None, noise: tuple[str, ...], granularity: "Granularity", init: "Init") -> Subject:
    """Build it.

    Args:
        model: a network's name, or module:function.
        data: whose images it takes; a network of the paper knows its own.
        noise: where a network of the user's own gets noise; if empty, everywhere, unless it has some.
        granularity: of that noise.
        init: sigma's start there.

    Raises:
        InputError: there is no such network, or it does not take such images.
        DataError: the data are not there or damaged.
    """
    from noiseprop.errors import InputError
    from noiseprop.models.registry import build, get_architecture
    from noiseprop.models.user_model import is_user_model, make_user_model
    from noiseprop.noise.attach.add_noise import is_noisy

    if not is_user_model(model):
        plain = get_architecture(model)
        if noise or data is not None:
            raise InputError(
                f"{model} has its noise and its images by its name; --noise and --data are for module:function"
            )
        return Subject(build(model), plain.image, plain.classes)
    image, classes = _form("mnist" if data is None else data)
    options: dict[str, Any] = {"image": image, "classes": classes, "granularity": granularity, "init": init}
    net = make_user_model(model, noise=noise, **options)
    if not is_noisy(net):
        net = make_user_model(model, noise=("all",), **options)
    return Subject(net, image, classes)


def _form(data: str) -> tuple[tuple[int, ...], int]:
    """The form of a data set's images and the number of its classes; only the user's own is read for it."""
    from noiseprop.data import load
    from noiseprop.data.load import IMAGE_FORMS, resolve_user_data

    if resolve_user_data(data) is None:
        return IMAGE_FORMS[data]
    dataset = load(data)
    return tuple(dataset.images.shape[1:]), len(dataset.classes)
