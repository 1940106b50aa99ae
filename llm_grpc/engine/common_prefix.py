"""What two sequences begin with."""

from __future__ import annotations


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many tokens two lists have in common from the first on; compares slices, which is C's work."""
    low, high = 0, min(len(a), len(b)) + 1
    while high - low > 1:  # the first `low` tokens are equal, and the first `high` are not, or not all there
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
