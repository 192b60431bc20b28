"""All randomness is drawn from counters: (seed, purpose, generation, ...) names a stream.

No generator lives longer than the draw it serves, so there is no hidden state to lose: a run
resumed at generation g draws what it would have drawn had it never stopped, and what one agent
draws does not depend on how many others there are.
"""

from __future__ import annotations

import hashlib

import torch

SCHEME = "sha256-counter-1"  # stands in every checkpoint; a new scheme gets a new name


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit number that is the same on every machine for the same name of a stream."""
    text = ":".join([SCHEME, str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for one draw: CPU also on GPU runs, so that both draw the same numbers."""
    generator = torch.Generator(device="cpu")
    generator.manual_seed(key(seed, purpose, *counters))
    return generator


def below(bound: int, seed: int, purpose: str, *counters: int) -> int:
    """One integer in [0, bound), straight from the counter."""
    if bound < 1:
        raise ValueError(f"nothing to draw from: bound is {bound}")
    return (key(seed, purpose, *counters) * bound) >> 63
