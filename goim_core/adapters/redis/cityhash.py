"""CityHash32, the hash by which goim puts a room into one of 64 slots (https://github.com/google/cityhash)."""

from __future__ import annotations

__all__ = ["cityhash32"]

MASK = 0xFFFFFFFF
C1, C2 = 0xCC9E2D51, 0x1B873593
"""The multipliers of Murmur3, from which this hash is made."""
ADD = 0xE6546B64


def cityhash32(data: bytes) -> int:
    """CityHash32 of ``data`` in version 1.1, 0 to 2**32 - 1."""
    size = len(data)
    if size <= 4:
        return _tiny(data)
    if size <= 12:
        words = (size + _word(data, 0), size * 5 + _word(data, size - 4), 9 + _word(data, size >> 1 & 4))
        return _mixed(words, size * 5)
    if size <= 24:
        half = size >> 1
        return _mixed([_word(data, at) for at in (half - 4, 4, size - 8, half, 0, size - 4)], size)
    return _long(data)


def _tiny(data: bytes) -> int:
    b, c = 0, 9
    for byte in data:
        b = (b * C1 + (byte - 256 if byte > 127 else byte)) & MASK
        c ^= b
    return _mixed((len(data), b), c)


def _mixed(words: tuple[int, ...] | list[int], seed: int) -> int:
    for word in words:
        seed = _spread(seed ^ _scrambled(word & MASK), 19)
    seed = ((seed ^ seed >> 16) * 0x85EBCA6B) & MASK
    seed = ((seed ^ seed >> 13) * 0xC2B2AE35) & MASK
    return seed ^ seed >> 16


def _long(data: bytes) -> int:
    size = len(data)
    h, g = size, C1 * size & MASK
    f = g
    for at in (4, 16):
        h = _spread(h ^ _scrambled(_word(data, size - at)), 19)
    for at in (8, 12):
        g = _spread(g ^ _scrambled(_word(data, size - at)), 19)
    f = _spread(f + _scrambled(_word(data, size - 20)), 19)
    for start in range(0, (size - 1) // 20 * 20, 20):
        second, last = _word(data, start + 4), _word(data, start + 16)
        first, third, fourth = (_scrambled(_word(data, start + at)) for at in (0, 8, 12))
        h = _spread(h ^ first, 18)
        f = _turned(f + second & MASK, 19) * C1 & MASK
        g = _spread(g + third, 18)
        h = _spread(h ^ (fourth + second & MASK), 19)
        g = _swapped(g ^ last) * 5 & MASK
        h = _swapped(h + last * 5 & MASK)
        f, h, g = g, f + first & MASK, h
    for turn in (11, 17):
        g = _turned(g, turn) * C1 & MASK
        f = _turned(f, turn) * C1 & MASK
    for other in (g, f):
        h = _turned(_spread(h + other, 19), 17) * C1 & MASK
    return h


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _scrambled(word: int) -> int:
    return _turned(word * C1 & MASK, 17) * C2 & MASK


def _spread(value: int, turn: int) -> int:
    return (_turned(value & MASK, turn) * 5 + ADD) & MASK


def _turned(value: int, turn: int) -> int:
    """``value`` with its bits turned to the right."""
    return (value >> turn | value << 32 - turn) & MASK


def _swapped(value: int) -> int:
    """``value`` with its bytes in the opposite order."""
    return int.from_bytes(value.to_bytes(4, "little"), "big")
