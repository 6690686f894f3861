"""When a run waited, trained and stopped: its parts in time, from launches and events.
Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from convoy.run.story import Story

# Words in an event's kind that make it something a reader should see at once.
BAD = tuple(
    "signal preempt fail lost exclud kill oom memory hang stuck refus error takeover".split()
)
EVERYWHERE = ("signal", "preempt")  # what reaches all hosts alike: the first to see it says nothing


@dataclass(frozen=True)
class Part:
    """Seconds since the beginning; `start` is None for a wait in the queue."""

    begin: float
    end: float
    start: int | None


@dataclass(frozen=True)
class Mark:
    """Something that happened, in words."""

    at: float
    text: str
    is_bad: bool


@dataclass(frozen=True)
class Timeline:
    """`origin` is the submission where it is known, else the first start, in seconds since the
    epoch."""

    origin: float
    parts: tuple[Part, ...] = ()
    marks: tuple[Mark, ...] = ()

    @property
    def end(self) -> float:
        return max(
            [part.end for part in self.parts] + [mark.at for mark in self.marks], default=0.0
        )

    @property
    def queued(self) -> float:
        return sum(part.end - part.begin for part in self.parts if part.start is None)

    @property
    def starts(self) -> int:
        return sum(part.start is not None for part in self.parts)

    @property
    def stops(self) -> list[str]:
        """What ended a start before the run was finished, in words, one for each start."""
        found = []
        for part in self.parts[:-1]:
            if part.start is not None:
                inside = [mark for mark in self.marks if part.begin <= mark.at <= part.end + 1]
                bad = [mark.text for mark in inside if mark.is_bad]
                found.append(bad[-1] if bad else "an end that left no record")
        return found


def timeline(run: Story) -> Timeline:
    """Of the run's own files; empty where no start is recorded."""
    starts = [
        moment for launch in run.launches if (moment := seconds(launch.get("time"))) is not None
    ]
    events = [
        (moment, event)
        for event in run.events
        if (moment := seconds(event.get("time"))) is not None
    ]
    if not starts:
        return Timeline(0.0)
    submitted = seconds(run.prediction.get("time")) or starts[0]
    origin = min(submitted, starts[0])
    heard = [moment for moment, _ in events]
    heard += [moment for moment in [seconds(run.progress.get("time"))] if moment is not None]
    heard += [
        moment
        for samples in run.vitals.values()
        for sample in samples
        if (moment := seconds(sample.get("time")))
    ]
    parts: list[Part] = []
    before = origin
    for number, begin in enumerate(starts):
        following = starts[number + 1] if number + 1 < len(starts) else float("inf")
        inside = [moment for moment in heard if begin <= moment < following]
        end = max(inside, default=begin)
        if begin - before > 1:
            parts.append(Part(before - origin, begin - origin, None))
        parts.append(Part(begin - origin, end - origin, number))
        before = end
    marks = tuple(Mark(moment - origin, words(event), is_bad(event)) for moment, event in events)
    return Timeline(origin, tuple(parts), marks)


def seconds(value: Any) -> float | None:
    """A time as seconds since the epoch, of a number or of ISO text; None if it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def is_bad(event: Mapping[str, Any]) -> bool:
    """Whether an event is one of those that end or endanger a run."""
    return any(word in str(event.get("kind", "")).lower() for word in BAD)


def words(event: Mapping[str, Any]) -> str:
    """`checkpoint: step 400`."""
    kind = str(event.get("kind", "")).replace("_", " ")
    local = is_bad(event) and not kind.startswith(EVERYWHERE)
    hidden = {"time", "kind", "start"} | (set() if local else {"host"})
    details = [
        str(value) if name in {kind, "message"} else f"{name.replace('_', ' ')} {value}"
        for name, value in event.items()
        if name not in hidden and value not in (None, "", [], {})
    ]
    return f"{kind}: {', '.join(details)}" if details else kind


def span(seconds: float) -> str:
    """For people: 45 s, 12 min, 6.5 h, 3.2 d."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86_400:.1f} d"
