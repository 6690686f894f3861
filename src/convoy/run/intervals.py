"""Intervals of time as sorted pairs. Standard library only."""

from collections.abc import Iterable, Sequence

Span = tuple[float, float]


def union(spans: Iterable[Span]) -> list[Span]:
    """Sorted, without overlap."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif end > begin:
            found.append((begin, end))
    return found


def intersection(one: Sequence[Span], other: Sequence[Span]) -> list[Span]:
    """Of two unions."""
    found, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        begin, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if begin < end:
            found.append((begin, end))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return found


def complement(spans: Sequence[Span], window: Span) -> list[Span]:
    """What a union leaves of `window`."""
    found, at = [], window[0]
    for begin, end in spans:
        if begin > at:
            found.append((at, min(begin, window[1])))
        at = max(at, end)
    if at < window[1]:
        found.append((at, window[1]))
    return found


def length(spans: Iterable[Span]) -> float:
    return sum(end - begin for begin, end in spans)
