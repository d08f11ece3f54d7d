"""Counter-based 64-bit hashing: the only source of chance inside a consultation.

Every draw is a pure function of a 64-bit key and a counter (SplitMix64, Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195),
compared with integer thresholds. It does not depend on order, batch, worker or machine, and touches no global state.
Each function has an array form and an integer form that give the same bits.

Does not cover: cryptography. A case's key is opaque to a reader, not secret from somebody who owns the base.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
_A, _B, _MASK = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, (1 << 64) - 1
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)
_UA, _UB, _UG = np.uint64(_A), np.uint64(_B), np.uint64(GOLDEN)


def mix(x: int) -> int:
    """SplitMix64's finaliser on one integer in [0, 2**64)."""
    x = ((x ^ (x >> 30)) * _A) & _MASK
    x = ((x ^ (x >> 27)) * _B) & _MASK
    return x ^ (x >> 31)


def draw(key: int, counter: int) -> int:
    """A uniform 64-bit integer, a pure function of `key` and `counter` (>= 0)."""
    return mix((key + (counter + 1) * GOLDEN) & _MASK)


def draw_array(key: NDArray[np.uint64], counter: NDArray[np.integer] | int) -> NDArray[np.uint64]:
    """`draw` for arrays (or one counter for all keys): uint64 of the broadcast shape, the same bits as `draw`."""
    if isinstance(counter, int):
        x = key + np.uint64((counter + 1) * GOLDEN & _MASK)
    else:
        x = key + (counter.astype(np.uint64) + np.uint64(1)) * _UG
    t = x >> _S30
    np.bitwise_xor(x, t, out=x)
    np.multiply(x, _UA, out=x)
    np.right_shift(x, _S27, out=t)
    np.bitwise_xor(x, t, out=x)
    np.multiply(x, _UB, out=x)
    np.right_shift(x, _S31, out=t)
    np.bitwise_xor(x, t, out=x)
    return x


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed from integers and words: how trainers, evaluations and ablations derive seeds that share no patient.

    >>> seed_for(0, "evaluation") != seed_for(1, "evaluation")
    True
    """
    x = GOLDEN
    for part in parts:
        for number in [part] if isinstance(part, int) else [*part.encode(), 256]:
            x = mix((x + (number & _MASK) * GOLDEN + 1) & _MASK)
    return x >> 1


def thresholds(probabilities: NDArray[np.float64], axis: int = -1) -> NDArray[np.uint64]:
    """Cumulative integer thresholds of a distribution along `axis`, uint64 in [0, 2**32].

    Outcome k is drawn when `t[k-1] <= draw >> 32 < t[k]`: multiples of 2**-32, so that the last bit of a float sum on
    another machine changes nothing, and an outcome of probability 0 is never drawn.
    """
    total = np.cumsum(probabilities, axis=axis)
    last = np.take(total, [-1], axis=axis)
    steps = np.rint(np.clip(total / last, 0.0, 1.0) * 2.0**32).astype(np.uint64)
    np.copyto(steps, np.uint64(1 << 32), where=total >= last)
    return steps
