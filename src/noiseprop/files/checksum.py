"""Checksums inside JSON documents and of tensors, so that a file damaged after it was written is never used."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CHECKSUM_KEY = "sha256"


def add_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON document with the SHA-256, in hex, of its content, in place of an earlier checksum.

    Whitespace and the order of keys do not matter.

    Raises:
        ValueError: the document holds NaN or infinity.

    >>> add_checksum({"epoch": 3})["sha256"][:12]
    '8f5de95b4b00'
    """
    content = {key: value for key, value in document.items() if key != CHECKSUM_KEY}
    return {**content, CHECKSUM_KEY: _hash_document(content)}


def verify_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document that `add_checksum` made, without its checksum.

    Raises:
        ValueError: the checksum is missing or does not match the content.
    """
    content = {key: value for key, value in document.items() if key != CHECKSUM_KEY}
    if CHECKSUM_KEY not in document:
        raise ValueError("its checksum is missing")
    if document[CHECKSUM_KEY] != _hash_document(content):
        raise ValueError("its checksum does not match, so it was changed after it was written")
    return content


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, of tensors by name, in their order."""
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


def _hash_document(document: Mapping[str, Any]) -> str:
    """Hash a document as JSON would return it, with strings for keys and lists for tuples."""
    content = json.loads(json.dumps(document, allow_nan=False))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
