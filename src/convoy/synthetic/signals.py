"""Traffic lights of a junction."""

from dataclasses import dataclass

from convoy.synthetic.shapes import Light

STEP = 0.1  # seconds between two moments of the traffic
GREEN, _AMBER, _ALL_RED = 5.0, 3.0, 2.0  # seconds that each phase lasts at least


@dataclass
class Signal:
    """A junction's lights: the arm that has or had green, and the phase since when."""

    arms: tuple[int, ...]
    arm: int
    phase: Light = Light.GREEN
    since: float = 0.0
    next_arm: int = 0

    def light(self, arm: int) -> Light:
        if arm == self.arm and self.phase is not Light.RED_AMBER:
            return self.phase
        return (
            Light.RED_AMBER if self.phase is Light.RED_AMBER and arm == self.next_arm else Light.RED
        )

    def step(self, demand: set[int], occupied: bool) -> None:
        """`demand`: arms with vehicles near their line; `occupied`: vehicles from this arm are on
        the junction."""
        self.since += STEP
        if self.phase is Light.GREEN and self.since >= GREEN:
            start = self.arms.index(self.arm)
            later = [arm for arm in self.arms[start + 1 :] + self.arms[:start] if arm in demand]
            if later:
                self.phase, self.since, self.next_arm = Light.AMBER, 0.0, later[0]
        elif self.phase is Light.AMBER and self.since >= _AMBER and not occupied:
            self.phase, self.since = Light.RED_AMBER, 0.0
        elif self.phase is Light.RED_AMBER and self.since >= _ALL_RED:
            self.phase, self.since, self.arm = Light.GREEN, 0.0, self.next_arm
