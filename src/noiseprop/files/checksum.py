"""Checksums inside the files of a run: what was damaged after it was written is never used."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CHECKSUM_KEY = "sha256"


def add_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document with the SHA-256, in hex, of all that it holds.

    Spaces and the order of keys do not count.

    Raises:
        ValueError: it holds NaN or infinity.

    >>> sealed({"epoch": 3})["sha256"][:12]
    '8f5de95b4b00'
    """
    return {**document, CHECKSUM_KEY: _hash_document(document)}


def verify_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document that `sealed` was given; one without a seal, as older versions wrote them, as it is.

    Raises:
        ValueError: it is not what was sealed.
    """
    # its name may be damaged, too; one candidate at most, for each costs a digest of all
    name = CHECKSUM_KEY if CHECKSUM_KEY in document else next(filter(_almost, document), None)
    content = {key: value for key, value in document.items() if key != name}
    fits = name is not None and document[name] == _hash_document(content)
    if fits != (name == CHECKSUM_KEY):
        raise ValueError("its checksum does not fit, so something in it was changed after it was written")
    return content if fits else dict(document)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of tensors by name, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def derive_seed(*parts: str | int) -> int:
    """Return 62 bits of SHA-256 of the parts: a seed for one purpose, the same on every machine.

    >>> derive_seed("mnist", "glass_blur", 3) == derive_seed("mnist", "glass_blur", 4)
    False
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def _almost(name: str) -> bool:
    """Whether a name is the seal's but for one character."""
    return len(name) == len(CHECKSUM_KEY) and sum(a != b for a, b in zip(name, CHECKSUM_KEY, strict=True)) == 1


def _hash_document(document: Mapping[str, Any]) -> str:
    """Of the document as JSON would give it back, with text for keys and lists for tuples."""
    content = json.loads(json.dumps(document, allow_nan=False))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
