"""Damaged files of every kind: each reader accepts them or raises a NoisepropError."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.found import FOUND
from tests.fuzz.readers import READERS, accepts


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(name):
    reader = READERS[name]
    assert any(accepts(reader, seed) for seed in reader.seeds())


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name):
    reader, refused = READERS[name], 0
    seeds = reader.seeds()

    @settings(max_examples=100, deadline=None, database=None)
    @given(number=st.integers(0, len(seeds) - 1), seed=st.integers(0, 2**32), rounds=st.integers(1, 4))
    def holds(number: int, seed: int, rounds: int) -> None:
        nonlocal refused
        rng, data = Random(seed), seeds[number]
        for _ in range(rounds):
            data = reader.damage(data, rng, lambda inner: edited(inner, rng))
        refused += not accepts(reader, data)

    holds()
    assert refused or name in ("cache", "partial", "npy", "curve")  # which treat damage as a missing file


@pytest.mark.parametrize("found", FOUND, ids=lambda found: f"{found.reader}: {found.says}")
def test_defects_that_were_found_stay_fixed(found):
    accepts(READERS[found.reader], found.data)


def edited(data: bytes, rng: Random) -> bytes:
    """Change, cut, repeat or insert a few bytes."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, act = rng.randrange(len(raw) + 1), rng.randrange(4)
        if act == 0 and at < len(raw):
            raw[at] = rng.choice([0, 255, rng.randrange(256)])
        elif act == 1:
            del raw[at : at + rng.choice([1, 8, 100])]
        elif act == 2:
            raw[at:at] = raw[at : at + rng.randrange(20)]
        else:
            raw[at:at] = rng.randbytes(rng.randrange(9))
    return bytes(raw)
