"""Each hint appears for its cause, and for nothing else."""

from pathlib import Path
from typing import Any

import pytest

from convoy.run.hints import hints
from convoy.run.story import Story

HOURS = 3600.0


def gpus(*busy: int, memory: int = 30_000) -> list[dict[str, Any]]:
    return [
        {"index": index, "busy": value, "memory": memory, "memory_total": 46_000}
        for index, value in enumerate(busy)
    ]


def sample(used: float = 100, limit: float = 1000, of: list[dict[str, Any]] | None = None) -> Any:
    memory = {"memory": used * 2**30, "memory_limit": limit * 2**30}
    return memory | {"gpus": gpus(95, 96) if of is None else of}


def story(accumulation: str = "1", **parts: Any) -> Story:
    defaults: dict[str, Any] = {
        "progress": {"seconds_left": HOURS, "step": 1},
        "config": {
            "trainer.params.accumulate_grad_batches": accumulation,
            "dataloader.params.batch_size": "22",
            "dataloader.params.num_workers": "4",
        },
        "vitals": {"gl001": (sample(),)},
    }
    return Story(Path("/run"), **(defaults | parts))


def paces(*own: float, step: float = 0.5) -> dict[int, dict[str, Any]]:
    return {rank: {"own_s": value, "batch_s": step, "host": "h"} for rank, value in enumerate(own)}


def test_a_healthy_run_has_none():
    assert hints(story(paces=paces(0.45, 0.46, 0.44, 0.45)), left=2 * HOURS) == []


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (story(vitals={"gl001": (sample(used=950),)}), "gl001 uses 950 of 1000 GiB of host memory"),
        (story(paces={0: {"data_wait": 0.4}}), "Data-bound: ranks wait for data 40%"),
        (story(vitals={"a": (sample(of=gpus(40, 45)),)}), "Host-bound: GPUs are busy 42 %"),
        (story(vitals={"a": (sample(of=gpus(97, 98, 0)),)}), "GPU 2 of a idles while others work"),
        (story(paces=paces(0.4, 0.41, 0.4, 0.9)), "Rank 3 on h is slow: 900 ms"),
        (
            story("4", vitals={"a": (sample(of=gpus(95, memory=9_000)),)}),
            "raise dataloader.params.batch_size (now 22)",
        ),
        (
            story(paces=paces(0.08, 0.08, 0.08), vitals={"a": (sample(),), "b": (sample(),)}),
            "Communication-bound: about 52% of the time",
        ),
    ],
)
def test_hints(run: Story, said: str):
    found = hints(run, left=2 * HOURS)
    assert len(found) == 1 and said in found[0]


def test_a_time_limit_that_will_not_do():
    assert "The time limit will not do: 1 h 00 min are left to train" in hints(story(), 600)[0]
    assert hints(story(results={"ade": 1}), 600) == []
