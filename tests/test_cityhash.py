"""CityHash32, against the values that its authors published with it (city-test.cc of version 1.1)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from goim_core.adapters.redis.cityhash import cityhash32

MULTIPLIER = 0xC3A5C85C97CB3127
MASK = (1 << 64) - 1


def numbers() -> Iterator[int]:
    """The bytes of which the published values are the hashes."""
    a, b = 9, 777
    at = 0
    while True:
        a = (a + b) & MASK
        b = (b + a) & MASK
        a = (a ^ a >> 41) * MULTIPLIER & MASK
        b = ((b ^ b >> 41) * MULTIPLIER + at) & MASK
        yield b >> 37 & 0xFF
        at += 1


DATA = bytes(islice(numbers(), 299 * 299))
PUBLISHED = {
    0: 0xDC56D17A,
    1: 0x99929334,
    2: 0x4252EDB7,
    3: 0xEBC34F3C,
    4: 0x26F2B463,
    5: 0xB042C047,
    6: 0xE73BB0A8,
    7: 0x91DFDD75,
    8: 0xC87F95DE,
    9: 0x3F5538EF,
    10: 0x70EB1A1F,
    11: 0xCFD63B83,
    12: 0x894A52EF,
    13: 0x9CDE6A54,
    19: 0x5DCEFC30,
    20: 0x7A48B105,
    23: 0x3360E827,
    24: 0x45177E0B,
    25: 0x7C6FFFE4,
    26: 0xBBC78DA4,
    39: 0x03CB36C3,
    40: 0x72C39BEA,
    41: 0xA65AA25C,
    44: 0xF29DB8A2,
    45: 0x1EF4CBF4,
    60: 0x56486077,
    61: 0x6069BE80,
    100: 0x9D90EAF5,
    101: 0x6665DB10,
    200: 0xA8BB6D80,
    298: 0xF6A9FBF8,
}


@pytest.mark.parametrize("size", sorted(PUBLISHED))
def test_as_published(size: int) -> None:
    """The piece that begins at the square of its size."""
    assert cityhash32(DATA[size * size : size * size + size]) == PUBLISHED[size]
