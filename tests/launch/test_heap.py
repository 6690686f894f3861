"""Freed memory stays in the process, where nobody tuned malloc."""

import resource
import subprocess
import sys

import pytest

from convoy.launch.heap import keep_freed_memory

# Twenty batches, taken and given back; the first one's pages are new in any case.
BATCHES = """
import resource
from convoy.launch.heap import keep_freed_memory
print(keep_freed_memory({environment!r}))
[bytearray(4 << 20) for _ in range(8)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    [bytearray(4 << 20) for _ in range(8)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 20 * 8 * (4 << 20) // resource.getpagesize()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has these settings")
def test_page_faults_of_batches():
    def faults(environment: dict[str, str]) -> tuple[str, int]:
        words = [sys.executable, "-c", BATCHES.format(environment=environment)]
        said, count = subprocess.run(
            words, text=True, capture_output=True, check=True
        ).stdout.split()
        return said, int(count)

    assert faults({"MALLOC_TRIM_THRESHOLD_": "1"})[0] == "False"
    said, count = faults({})
    assert said == "True" and count < PAGES / 10


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_what_a_person_set_stays(name):
    assert not keep_freed_memory({name: "glibc.malloc.trim_threshold=1"})
