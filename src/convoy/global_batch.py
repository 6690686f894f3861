"""From the global batch to what one rank does: arithmetic only."""

from dataclasses import dataclass

from convoy.errors import ConvoyError


@dataclass(frozen=True)
class BatchPlan:
    """`global_batch` samples an optimiser step = `world_size` ranks x `rank_batch` samples x
    `accumulation`."""

    global_batch: int
    world_size: int
    rank_batch: int
    accumulation: int

    @property
    def rank_samples_per_step(self) -> int:
        """Samples that one rank contributes to one optimiser step."""
        return self.rank_batch * self.accumulation


def plan_batches(
    world_size: int,
    rank_batch_limit: int,
    global_batch: int | None = None,
    accumulation: int | None = None,
) -> BatchPlan:
    """Derive the per-rank batch and the accumulation.

    With `global_batch` None the meaning is NAVSIM's: every rank takes `rank_batch_limit` samples,
    times the accumulation. Otherwise the smallest accumulation (or the one given) is taken whose
    per-rank batch is whole and at most `rank_batch_limit`. Raises ConvoyError, naming the nearest
    possible global batches, when there is none.
    """
    for name, value in {
        "dataloader.params.batch_size": rank_batch_limit,
        "global_batch": global_batch,
        "trainer.params.accumulate_grad_batches": accumulation,
    }.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConvoyError(f"{name} must be a whole number of at least 1, not {value!r}.")
    if global_batch is None:
        steps = accumulation or 1
        return BatchPlan(rank_batch_limit * world_size * steps, world_size, rank_batch_limit, steps)

    unit = world_size * (accumulation or 1)
    if global_batch % unit:
        below, above = global_batch // unit * unit, -(-global_batch // unit) * unit
        nearest = f"{below} or {above}" if below else str(above)
        times = f" x accumulation {accumulation}" if accumulation else ""
        raise ConvoyError(
            f"global_batch={global_batch} cannot be split over world size {world_size}{times}: "
            "every rank must take the same number of samples. Nearest possible: "
            f"global_batch={nearest}."
        )
    per_rank = global_batch // world_size
    if accumulation is None:
        accumulation = next(
            steps
            for steps in range(1, per_rank + 1)
            if per_rank % steps == 0 and per_rank // steps <= rank_batch_limit
        )
    if per_rank // accumulation <= rank_batch_limit:
        return BatchPlan(global_batch, world_size, per_rank // accumulation, accumulation)
    raise ConvoyError(
        f"global_batch={global_batch} on world size {world_size} with "
        f"accumulate_grad_batches={accumulation} needs {per_rank // accumulation} samples a rank, "
        f"more than dataloader.params.batch_size={rank_batch_limit}. Leave "
        "trainer.params.accumulate_grad_batches out, or raise dataloader.params.batch_size."
    )
