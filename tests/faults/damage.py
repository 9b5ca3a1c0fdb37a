"""Ways to damage what is in a file."""


def flipped(content, place, mask):
    """The same bytes, with bits of one of them flipped."""
    other = bytearray(content)
    other[place] ^= mask
    return bytes(other)


def damaged(content, flips, rng):
    """Cut, with a block of zeros, and with one bit flipped, each at random places; all bits if `flips` are enough."""
    size = len(content)
    for length in (0, 1, size // 2, size - 1, *(rng.randrange(size) for _ in range(16))):
        yield content[:length]
    for start in (rng.randrange(size) for _ in range(20)):
        zeros = content[:start] + bytes(len(content[start : start + 512])) + content[start + 512 :]
        if zeros != content:
            yield zeros
    bits = range(8 * size) if flips >= 8 * size else rng.sample(range(8 * size), flips)
    for bit in bits:
        yield flipped(content, bit // 8, 1 << bit % 8)
