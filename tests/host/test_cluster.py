"""What a real SLURM 22.05 printed: drained nodes, two GPU types, arrays, a held job."""

from datetime import datetime
from pathlib import Path

import pytest

from convoy.host import cluster
from convoy.host.cluster import SlurmUnavailable

RECORDED = Path(__file__).with_name("slurm_22.05")


def text(name: str) -> str:
    return (RECORDED / name).read_text()


def test_nodes():
    nodes = {node.name: node for node in cluster.parse_nodes(text("busy/nodes.txt"))}
    assert sorted(nodes) == ["gh001", "gl001", "gl006", "gl007", "gl008"]
    gl008 = nodes["gl008"]
    assert not gl008.usable and gl008.reason.startswith("bad dimm [") and gl008.state == "IDLE"
    assert nodes["gl001"].gpus_used == 4 and nodes["gl001"].usable and not nodes["gl001"].is_free
    assert nodes["gl007"].is_free and nodes["gl007"].gpu == "l40s"
    gh001 = nodes["gh001"]
    assert (gh001.gpu, gh001.gpus, gh001.gpus_used, gh001.cpus) == ("h200", 8, 2, 192)
    assert gh001.partitions == ("h200", "closed", "vip") and gh001.memory_mib == 2048000


@pytest.mark.parametrize(
    ("state", "usable"),
    [("IDLE", True), ("MIXED+CLOUD", True), ("IDLE+CLOUD+POWERED_DOWN", True), ("IDLE*", False)]
    + [("DOWN*+DRAIN", False), ("IDLE+DRAIN", False), ("ALLOCATED+MAINT", False)]
    + [("IDLE+NOT_RESPONDING", False), ("ALLOCATED+COMPLETING", True), ("UNKNOWN", False)],
)
def test_states_of_a_node(state: str, usable: bool):
    line = text("idle/nodes.txt").splitlines()[0].replace("State=IDLE", f"State={state}")
    assert cluster.parse_nodes(line)[0].usable is usable


@pytest.mark.parametrize(
    ("gres", "found"),
    [("gpu:l40s:4(S:0-1)", ("l40s", 4)), ("gpu:4", ("gpu", 4)), ("(null)", ("", 0))]
    + [("gpu:a100_3g.20gb:2,gpu:a100:6,nvme:1", ("a100", 6)), ("craynetwork:4", ("", 0))],
)
def test_gpus_of_a_node(gres: str, found: tuple[str, int]):
    line = text("idle/nodes.txt").splitlines()[1].replace("Gres=gpu:l40s:4", f"Gres={gres}")
    node = cluster.parse_nodes(line)[0]
    assert (node.gpu, node.gpus) == found


def test_a_site_that_does_not_count_gpus():
    """Without AccountingStorageTRES=gres/gpu a busy node is taken to be full."""
    for line in text("busy/nodes.txt").replace(",gres/gpu=4", "").splitlines():
        node = cluster.parse_nodes(line)[0]
        if node.name == "gl001":
            assert node.gpus_used == 4
        if node.name == "gl007":
            assert node.gpus_used == 0
    assert cluster._job_gpus("cpu=4,node=3", "gres:gpu:l40s:4", 3) == 12
    assert cluster._job_gpus("cpu=4,node=3", "gres/gpu:2", 1) == 2
    assert cluster._job_gpus("cpu=4,node=3", "N/A", 1) is None


def test_partitions():
    found = {part.name: part for part in cluster.parse_partitions(text("busy/partitions.txt"))}
    assert list(found) == ["l40s_public", "short", "h200", "closed", "vip"]
    assert found["l40s_public"].limit == 12 * 3600 and found["l40s_public"].is_default
    assert found["l40s_public"].nodes == 4
    assert found["short"].limit == 1800 and found["vip"].limit is None
    assert not found["closed"].up and found["h200"].up
    assert found["vip"].accounts == ("vip",) and found["h200"].accounts is None


def test_queue():
    jobs = {job.id: job for job in cluster.parse_queue(text("busy/queue.txt"))}
    assert set(jobs) == {"24", "25", "26", "27_1", "27_2", "28", "29", "30"}
    first = jobs["24"]
    assert (first.name, first.hosts, first.left, first.gpus) == ("a|b", "gl001", 7191, 4)
    assert jobs["25"].partitions == ("l40s_public",) and jobs["25"].state == "RUNNING"
    waiting = jobs["27_2"]
    assert (waiting.nodes, waiting.gpus, waiting.reason) == (3, 12, "QOSMaxGRESPerUser")
    assert waiting.start == datetime(2026, 11, 25, 15, 11, 19)
    assert jobs["29"].start is None and jobs["29"].priority == 0


def test_limits():
    limits = cluster.parse_limits(text("busy/assoc.txt"), text("busy/qos.txt"))
    assert limits.accounts == {"users": ("normal", "short")}
    assert limits.qos_gpus_per_user == {"normal": 16} and limits.qos_wall == {"short": 600}


def test_test_only():
    answers = {}
    for block in text("test_only.txt").split("## ")[1:]:
        arguments, _, said = block.partition("\n")
        answers[arguments] = cluster.parse_test_only(said)
    start = answers["-p l40s_public -N2 -t 12:00:00"]
    assert start.start == datetime(2026, 11, 25, 22, 31, 19) and not start.refusal
    too_long = answers["-p l40s_public -N2 -t 13:00:00"]
    assert too_long.start is None
    assert too_long.refusal == "Requested time limit is invalid (missing or exceeds some limit)"
    assert answers["-p nope -N1"].refusal == "Invalid partition name specified"
    assert answers["-p l40s_public -N9 -t 1:00:00"].refusal == "Node count specification invalid"
    assert cluster.parse_test_only("").refusal == "no answer"
    newest = "sbatch: Job 1 to start at 2026-11-25T17:30:15 a using 128 processors on nodes gl001"
    assert cluster.parse_test_only(newest).start == datetime(2026, 11, 25, 17, 30, 15)


def test_the_picture_of_a_live_cluster(slurm, monkeypatch):
    log = slurm(RECORDED / "busy")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")  # a user's own view must not hide the queue
    picture = cluster.read("researcher")
    assert len(picture.nodes) == 5 and len(picture.jobs) == 8 and len(picture.partitions) == 5
    assert picture.limits is not None
    assert "-O JobArrayID:|," in log.read_text()


def test_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmUnavailable, match="squeue is not in PATH: run this on a login node"):
        cluster.jobs()


def test_a_controller_that_is_gone(slurm, tmp_path):
    slurm(tmp_path / "nothing")
    with pytest.raises(SlurmUnavailable, match="squeue failed: .*No such file"):
        cluster.jobs()


def test_node_lists():
    assert cluster.hosts("gl[001,006-008],h1") == ["gl001", "gl006", "gl007", "gl008", "h1"]
