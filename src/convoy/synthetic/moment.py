"""What is around the ego at one moment of a drive."""

from dataclasses import dataclass, field

from convoy.synthetic.shapes import Array, Cone, Light, Pedestrian, SignalPost, Vehicle


@dataclass(frozen=True)
class Track:
    """A vehicle, person or cone at one moment; `identity` stays the same from moment to moment."""

    identity: int
    box: Vehicle | Pedestrian | Cone
    velocity: Array  # (2,) m/s in the town's frame


@dataclass(frozen=True)
class Moment:
    """The ego and what is within 120 m of it, in the town's frame."""

    pose: tuple[float, float, float]  # of the ego's rear axle
    speed: float
    acceleration: Array  # (2,) m/s^2 ahead and to the left
    route: tuple[int, ...]  # edges: the one before the ego's, the ego's, those ahead
    # (N, 2) points of the route from the ego on, half a metre apart.
    route_ahead: Array = field(repr=False)
    # Metres to the next junction, and 1 left, 0 straight on, -1 right there.
    next_turn: tuple[float, int] | None
    tracks: tuple[Track, ...] = field(repr=False)
    posts: tuple[SignalPost, ...] = field(repr=False)
    lights: dict[tuple[int, int], Light] = field(repr=False)  # (junction, arm) -> light
