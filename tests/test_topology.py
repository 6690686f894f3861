import pytest

from convoy.errors import ConvoyError
from convoy.topology import Topology

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
    topology = Topology.from_environment({"SLURM_JOB_ID": "9", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"})
    assert topology.world_size == 1


def test_several_srun_tasks_without_torchrun_are_refused():
    with pytest.raises(ConvoyError, match="8 tasks.*--ntasks-per-node=1"):
        Topology.from_environment({"SLURM_JOB_ID": "9", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"})


def test_world_size_without_torchrun_is_refused():
    with pytest.raises(ConvoyError, match="WORLD_SIZE is 4"):
        Topology.from_environment({"WORLD_SIZE": "4"})


def test_array_tasks_have_names_of_their_own():
    environment = {"SLURM_JOB_ID": "103", "SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": "3"}
    assert Topology.from_environment(environment).job_id == "100_3"


def test_uneven_nodes_are_refused():
    with pytest.raises(ConvoyError, match="2 nodes x 4 processes are not the world size 7"):
        Topology.from_environment(TORCHRUN | {"WORLD_SIZE": "7"})
