"""How often Python looks for garbage among all that a process keeps.

It looks again and again while a start's imports and the compiler make a million objects that stay:
a fifth of the imports' time, a tenth of a compilation's. Objects that die young are still found.
"""

import gc

USUAL = gc.get_threshold()
RARELY = (*USUAL[:2], 100 * USUAL[2])


def look_rarely() -> None:
    """Until the process has started. Workers that are forked meanwhile keep it: each of their looks
    would copy the pages that they share with it."""
    gc.set_threshold(*RARELY)


def look_as_usual() -> None:
    """For an agent's garbage may hold GPU memory."""
    gc.set_threshold(*USUAL)
