"""Sums that do not depend on the order of their terms: value gradients in 64-bit fixed point.

Floating-point reductions of many programs into one number round differently from run to run. Integers do not round: a
term is multiplied by a power of two, rounded and added, and the sum is divided in the end. The power is the largest for
which no sum can overflow, whatever is added where, given a bound on the sum of absolute terms. For attention the bound
is the number of queries times the largest |output gradient|, since the weights of a query add up to at most one: with
32,640 queries a term is resolved to 2^-47 of that gradient, finer than float32 resolves any sum.

32 bits are too few for that bound: a term would be resolved to 2^-15 of the largest gradient, although a cell usually
sums a few weights, not those of all queries. A bound for every cell would need a pass of its own over all samples. So
that 64 bits take no more room than a float32 buffer, at most half of the heads are summed at a time (`head_passes`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_INT64_BITS = 62  # one below the sign: the bound is met with room for rounding
_MAX_EXPONENT = 126  # scale and its inverse are normal float32; a term is then resolved to 2^-126


@dataclass(frozen=True)
class FixedPoint:
    """The scale of one accumulation, on its device: nothing synchronizes.

    Attributes:
        scale: float32 [1], a power of two that every term is multiplied with; NaN where the bound is not finite.
    """

    scale: Tensor

    @classmethod
    def for_bound(cls, largest: Tensor, count: int) -> "FixedPoint":
        """Scale for sums whose absolute terms add up to at most count * largest, a scalar tensor >= 0."""
        bound = largest.double().reshape(1) * count
        exponent = (_INT64_BITS - torch.frexp(bound).exponent).clamp(max=_MAX_EXPONENT)
        scale = torch.ldexp(torch.ones_like(bound), exponent).float()
        return cls(torch.where(bound.isfinite(), scale, torch.nan))

    def write(self, sums: Tensor, out: Tensor) -> None:
        """Write int64 sums as floating-point numbers, on a GPU without a copy; NaN where the bound was not finite."""
        torch.mul(sums, 1.0 / self.scale, out=out)


def head_passes(heads: int) -> list[range]:
    """The heads in equal passes of at most half of them; a single head is one pass, its sums twice a float32 buffer."""
    count = next(n for n in range(max(1, heads // 2), 0, -1) if heads % n == 0)
    return [range(first, first + count) for first in range(0, heads, count)]
