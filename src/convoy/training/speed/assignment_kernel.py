"""scipy's rectangular_lsap (Crouse 2016, shortest augmenting paths) as a Triton kernel.

One program solves one problem. A lane stands for row i and for column i. Ties are broken as in
scipy's C++: of the nearest columns the last unassigned one of its list of remaining columns, or
else the first of that list; the list starts in descending order, and a column that leaves it is
replaced by the list's last. Sums are taken in scipy's order, so that equal costs stay equal.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["n"])
def _assign(cost_ptr, out_ptr, n, N: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, N)
    real = lane < n
    INF = float("inf")
    u = tl.zeros((N,), tl.float64)  # of rows
    v = tl.zeros((N,), tl.float64)  # of columns
    col4row = tl.full((N,), -1, tl.int32)
    row4col = tl.full((N,), -1, tl.int32)
    base = cost_ptr + tl.program_id(0).to(tl.int64) * n * n
    for current in range(0, n):
        shortest = tl.full((N,), INF, tl.float64)
        path = tl.full((N,), -1, tl.int32)
        place = tl.where(real, n - 1 - lane, -1)  # in the list of remaining columns; -1: left it
        seen_row = tl.zeros((N,), tl.int32)
        left = n
        i = current
        least = tl.sum(tl.zeros((N,), tl.float64), 0)
        sink = current * 0 - 1
        while sink == -1:
            seen_row = tl.where(lane == i, 1, seen_row)
            row = tl.load(base + i * n + lane, mask=real, other=0.0)
            ui = tl.sum(tl.where(lane == i, u, 0.0), 0)
            remaining = place >= 0
            distance = least + row - ui - v
            nearer = remaining & (distance < shortest)
            path = tl.where(nearer, i, path)
            shortest = tl.where(nearer, distance, shortest)
            least = tl.min(tl.where(remaining, shortest, INF), 0)
            tied = remaining & (shortest == least)
            last_free = tl.max(tl.where(tied & (row4col == -1), place, -1), 0)
            first = tl.min(tl.where(tied, place, N), 0)
            index = tl.where(last_free >= 0, last_free, first)
            j = tl.sum(tl.where(place == index, lane, 0), 0)
            owner = tl.sum(tl.where(lane == j, row4col, 0), 0)
            sink = tl.where(owner == -1, j, -1)
            i = tl.where(owner == -1, i, owner)
            left = left - 1
            moved = (place == left) & (lane != j)
            place = tl.where(lane == j, -1, tl.where(moved, index, place))
        # Columns that left the list are those on the searched paths.
        held = col4row[:, None] == lane[None, :]  # rows x columns
        own = tl.sum(tl.where(held, shortest[None, :], 0.0), 1)
        u = tl.where(lane == current, u + least, u)
        u = tl.where((seen_row == 1) & (lane != current), u + (least - own), u)
        v = tl.where(real & (place == -1), v - (least - shortest), v)
        j = sink
        i = current - current - 1
        while i != current:
            i = tl.sum(tl.where(lane == j, path, 0), 0)
            row4col = tl.where(lane == j, i, row4col)
            following = tl.sum(tl.where(lane == i, col4row, 0), 0)
            col4row = tl.where(lane == i, j, col4row)
            j = following
    tl.store(out_ptr + tl.program_id(0) * n + lane, col4row.to(tl.int64), mask=real)


def launch(cost: Tensor) -> Tensor:
    """(b, n, n) contiguous float64 on a GPU to (b, n) int64, without waiting for it."""
    batch, n, _ = cost.shape
    out = torch.empty((batch, n), dtype=torch.int64, device=cost.device)
    _assign[(batch,)](cost, out, n, triton.next_power_of_2(max(n, 2)), num_warps=1)
    return out
