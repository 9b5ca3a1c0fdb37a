"""What fuzzing found: files that a reader once failed on. They are tested, and fuzzing starts from them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A file, the reader that failed on it, and how."""

    reader: str
    data: bytes
    says: str


FOUND: list[Found] = []
