"""Work of the processes of test_noise_state_ddp.py: `python ddp_worlds.py FOLDER NETWORK...`.

Worlds of one and two processes run, one after the other. Each process runs plain loops of a user around
DistributedDataParallel, on its rows of each batch, and saves what it saw in FOLDER/SIZE/NETWORK-RANK.safetensors.
Processes are forked from one that has a single thread.
"""

import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from transformers import ViTConfig, ViTForImageClassification

from noiseprop import SigmaAdam, add_noise, reset_noise, sampling, sigmas, weights

ROWS = 12  # in a whole batch
BATCHES = 3
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(ROWS * BATCHES, 3, 8, 8, generator=GENERATOR)
LABELS = torch.randint(3, (ROWS * BATCHES,), generator=GENERATOR)


class FrozenNormNet(nn.Module):
    """Network whose train() leaves its batch norm in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.head = nn.Linear(36, 3)

    def train(self, mode: bool = True) -> "FrozenNormNet":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu().flatten(1))


class CellNet(nn.Module):
    """Recurrent cell over the rows of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(24, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.transpose(1, 2).flatten(2).unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class LogitsOnly(nn.Module):
    """Logits of a Hugging Face model, called past its hooks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward(x).logits


def build_vit() -> nn.Module:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, image_size=8, patch_size=4,
        num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    return LogitsOnly(add_noise(model, "linear", granularity="channel", init=0.5, example=IMAGES[:1]))


def build_frozen_norm() -> nn.Module:
    return add_noise(FrozenNormNet(), "all", init=0.5, example=IMAGES[:1]).train()


def build_swapped_stem() -> nn.Module:
    model = add_noise(FrozenNormNet(), "all", init=0.5, example=IMAGES[:1]).train()
    model.stem = nn.Conv2d(3, 4, 3, stride=2)
    return model


def build_cells() -> nn.Module:
    return add_noise(CellNet(), "all", init=0.5, example=IMAGES[:1])


def build_key_per_rank() -> nn.Module:
    """Each process has another key, as a user may try for independent noise; DDP sends that of the first process."""
    return add_noise(FrozenNormNet(), "all", init=0.5, example=IMAGES[:1], key=_get_rank()).train()


def build_same() -> nn.Module:
    return add_noise(FrozenNormNet(), "all", init=0.5, example=IMAGES[:1], same_on_all_ranks=True).train()


def build_same_cells() -> nn.Module:
    return add_noise(CellNet(), "all", init=0.5, example=IMAGES[:1], same_on_all_ranks=True)


def build_same_vit() -> nn.Module:
    model = build_vit()
    for module in model.modules():
        if hasattr(module, "same_on_all_ranks"):
            module.same_on_all_ranks = True
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    name.removeprefix("build_"): make for name, make in list(globals().items()) if name.startswith("build_")
}


def _get_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def run_user_loop(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Train as a user does; return logits and gradients of each step, the final state, and outputs under `sampling`."""
    torch.manual_seed(0)
    model, size = make(), dist.get_world_size()
    wrapped = DistributedDataParallel(model)
    optimizers = [torch.optim.SGD(weights(wrapped), lr=0.1), SigmaAdam(sigmas(wrapped), lr=1e-2)]
    seen: dict[str, Tensor] = {}
    for step in range(BATCHES):
        rows = slice(step * ROWS, (step + 1) * ROWS)
        x, y = IMAGES[rows].chunk(size)[_get_rank()], LABELS[rows].chunk(size)[_get_rank()]
        for optimizer in optimizers:
            optimizer.zero_grad()
        logits = wrapped(x)
        functional.cross_entropy(logits, y).backward()
        seen[f"logits-{step}"] = logits.detach()
        for name, parameter in model.named_parameters():
            seen[f"gradient-{step}.{name}"] = parameter.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    seen |= {f"state.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    x = IMAGES[:ROWS].chunk(size)[_get_rank()]
    with torch.no_grad():
        with sampling(wrapped, "frozen", key=3):
            seen["frozen"] = wrapped(x)
        with sampling(wrapped, "off"):
            seen["off"] = wrapped(x)
        reset_noise(wrapped, 4)
        seen["reset"] = wrapped(x)
        reset_noise(wrapped, 4)
        with sampling(wrapped.eval(), draws=3):
            seen["draws"] = wrapped(x).transpose(0, 1)
        same = IMAGES[:1].expand(ROWS // size, -1, -1, -1)
        seen["equal-images"] = wrapped(same)
    return {name: tensor.contiguous() for name, tensor in seen.items()}


def run_distributed_sampler(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Draw noise for equal images that a DistributedSampler deals out, 13 of them for two processes."""
    torch.manual_seed(0)
    wrapped = DistributedDataParallel(make())
    dataset = TensorDataset(IMAGES[:1].expand(13, -1, -1, -1))
    loader = DataLoader(dataset, batch_size=4, sampler=DistributedSampler(dataset, shuffle=True))
    with torch.no_grad():
        return {f"dealt-{step}": wrapped(x) for step, (x,) in enumerate(loader)}


def run_process(networks: list[str], folder: Path, rank: int, size: int) -> int:
    """Do the work of one process; return its exit code."""
    try:
        dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=60), rank=rank, world_size=size)
        for name in networks:
            seen = run_user_loop(NETWORKS[name]) | run_distributed_sampler(NETWORKS[name])
            save_file(seen, folder / f"{name}-{rank}.safetensors")
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    top, *names = sys.argv[1:]
    torch.set_num_threads(1)
    for size in (1, 2):
        folder = Path(top) / str(size)
        folder.mkdir(parents=True)
        children = []
        for rank in range(size):
            child = os.fork()
            if not child:
                code = run_process(names, folder, rank, size)
                sys.stderr.flush()
                os._exit(code)
            children.append(child)
        if sum(os.waitpid(child, 0)[1] for child in children):
            sys.exit(f"a world of {size} failed")
