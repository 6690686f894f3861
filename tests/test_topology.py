import pytest

from convoy.errors import ConvoyError
from convoy.topology import Launch, Topology, expand_hosts

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "77_0",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
}


def test_torchrun_gives_ranks_and_node_count():
    topology = Topology.from_environment(TORCHRUN | {"SLURM_JOB_ID": "77"})
    assert (topology.rank, topology.local_rank, topology.node_rank) == (5, 1, 1)
    assert (topology.world_size, topology.local_world_size, topology.num_nodes) == (8, 4, 2)
    assert (topology.launcher, topology.run_id, topology.job_id) == ("torchrun", "77_0", "77")
    assert topology.restart_count == 1
    assert not topology.is_rank_zero


def test_alone_without_variables():
    topology = Topology.from_environment({})
    assert (topology.rank, topology.world_size, topology.num_nodes) == (0, 1, 1)
    assert topology.launcher == "alone"
    assert topology.job_id is None


def test_torchruns_default_run_id_is_no_name():
    assert Topology.from_environment(TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}).run_id is None


def test_inside_an_allocation_without_srun_is_alone():
    topology = Topology.from_environment(
        {"SLURM_JOB_ID": "9", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    )
    assert topology.world_size == 1


def test_several_srun_tasks_without_torchrun_are_refused():
    with pytest.raises(ConvoyError, match="8 tasks.*--ntasks-per-node=1"):
        Topology.from_environment(
            {"SLURM_JOB_ID": "9", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}
        )


def test_world_size_without_torchrun_is_refused():
    with pytest.raises(ConvoyError, match="WORLD_SIZE is 4"):
        Topology.from_environment({"WORLD_SIZE": "4"})


def test_array_tasks_have_names_of_their_own():
    environment = {"SLURM_JOB_ID": "103", "SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": "3"}
    assert Topology.from_environment(environment).job_id == "100_3"


def test_uneven_nodes_are_refused():
    with pytest.raises(ConvoyError, match="2 nodes x 4 processes are not the world size 7"):
        Topology.from_environment(TORCHRUN | {"WORLD_SIZE": "7"})


STEP = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gl[001,006]",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURMD_NODENAME": "gl006",
    "SLURM_GPUS_ON_NODE": "4",
}


def test_a_launch_alone_has_a_rank_per_gpu_and_at_least_one():
    assert [Launch.from_environment({}, gpus).processes for gpus in (0, 1, 8)] == [1, 1, 8]
    launch = Launch.from_environment({}, 8)
    assert (launch.nodes, launch.endpoint, launch.is_host, launch.run_id) == (1, None, None, None)
    assert launch.where.startswith("alone on ") and launch.where.endswith(": 8 rank(s)")


def test_a_launch_under_srun_reads_the_step():
    launch = Launch.from_environment(STEP, 0)
    assert (launch.nodes, launch.processes, launch.run_id) == (2, 4, "12.0")
    assert (launch.endpoint, launch.is_host, launch.peer) == ("gl001", False, "gl001")
    first = Launch.from_environment(STEP | {"SLURM_NODEID": "0", "SLURMD_NODENAME": "gl001"}, 0)
    assert (first.is_host, first.peer) == (True, "gl006")


def test_launch_facts_go_before_the_step():
    given = {
        "CONVOY_NODES": "2",
        "CONVOY_RDZV_ENDPOINT": "10.0.0.1:61000",
        "CONVOY_RDZV_IS_HOST": "0",
        "CONVOY_RUN_ID": "12-0",
        "CONVOY_PROCESSES_PER_NODE": "3",
        "CONVOY_HOSTS": "gl001 gl006",
    }
    launch = Launch.from_environment(STEP | given, 8)
    assert (launch.nodes, launch.processes, launch.endpoint) == (2, 3, "10.0.0.1:61000")
    assert (launch.is_host, launch.peer, launch.run_id) == (False, "gl001", "12-0")


def test_several_tasks_on_a_node_are_refused():
    with pytest.raises(ConvoyError, match="4 tasks on 2 node.*--ntasks-per-node=1"):
        Launch.from_environment(STEP | {"SLURM_STEP_NUM_TASKS": "4"}, 0)


def test_in_a_job_without_srun_the_other_nodes_are_mentioned():
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "4"}
    launch = Launch.from_environment(job, 0)
    assert launch.nodes == 1 and launch.processes == 4
    assert "SLURM job 12, alone on" in launch.where and "all 4 nodes" in launch.where


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_a_launch_fact_that_is_no_number(value):
    with pytest.raises(ConvoyError, match=f"CONVOY_NODES={value} must be a whole number"):
        Launch.from_environment({"CONVOY_NODES": value}, 0)


@pytest.mark.parametrize(
    ("names", "hosts"),
    [
        ("gl001", ["gl001"]),
        ("gl[001,006]", ["gl001", "gl006"]),
        ("gl[008-011],h1", ["gl008", "gl009", "gl010", "gl011", "h1"]),
        ("r[1-2]n[3,5]x", ["r1n3x", "r1n5x", "r2n3x", "r2n5x"]),
        ("a-b,c-1", ["a-b", "c-1"]),
    ],
)
def test_slurms_lists_of_hosts(names, hosts):
    assert expand_hosts(names) == hosts
