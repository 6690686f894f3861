"""A run directory on a real NFS, seen from two nodes of a virtual machine: what files can be relied
on there, whatever a client keeps in its caches."""

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def the_machine():
    path = ROOT / "testbed" / "nfs" / "machine.py"
    spec = importlib.util.spec_from_file_location("machine", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_nodes_and_one_run(requirement):
    machine = the_machine()
    lacking = machine.missing()
    reason = f"no virtual machine with NFS here (it lacks {', '.join(lacking)}); as root: apt-get "
    requirement("nfs", not lacking, reason + "install qemu-system-x86 mmdebstrap cpio")
    results = machine.results(Path(os.environ.get("CONVOY_IMAGE_CACHE", ROOT / "build")))
    assert [found["version"] for found in results] == list(machine.VERSIONS)
    for found in results:
        # A living start keeps its run; the next one has it at once.
        assert found["refused"] and found["kept"] and found["after_release_s"] < 15, found
        # One that was killed is followed, after its silence.
        assert found["from"] == "gl001" and found["taken_over_s"] >= 25, found
        # One that stood still writes no more once it goes on.
        assert found["stopped_from"] == "gl001" and found["lost"], found
        assert found["noticed_s"] < 15, found
        # Of all that want a free run one gets it, and it is not always the same node's: a race.
        assert found["owners_of_a_run"] == [1] and min(found["won_by_node"]) > 0, found
        assert found["request_seen_s"] < 20, found
        # Events that both nodes write are all there.
        assert found["events"] == found["events_written"], found
