"""The settings that a first job on a cluster needs."""

import pytest

from convoy.errors import ConvoyError
from convoy.host import site
from convoy.host.cluster_model import Partition
from convoy.host.first_use import compare

JOB = {"partition": "l40s_public", "account": "users"}
HERE = [Partition("cpu"), Partition("gpu", is_default=True)]


def test_a_cluster_that_the_job_file_was_written_for_asks_nothing():
    assert compare(JOB, (), [Partition("l40s_public")], ["users", "other"]) == []


def test_what_the_cluster_does_not_know_is_asked_for():
    partition, account = compare(JOB, (), HERE, ["vision"])
    assert (partition.name, partition.choices, partition.default) == (
        "SBATCH_PARTITION",
        ("cpu", "gpu"),
        "gpu",
    )
    assert (account.name, account.default) == ("SBATCH_ACCOUNT", "vision")
    assert str(partition) == "SBATCH_PARTITION (your partitions: cpu, gpu)"


@pytest.mark.parametrize("given", ["partition", "account"])
def test_what_is_given_is_not_asked_for(given):
    assert given not in [word.option for word in compare(JOB, {given: "x"}, HERE, ["vision"])]


def test_without_accounting_any_account_is_taken():
    assert [word.option for word in compare(JOB, (), HERE, [])] == ["partition"]


def test_answers_are_added_to_the_file(tmp_path):
    path = tmp_path / "site.conf"
    site.add(path, {"SBATCH_PARTITION": "gpu"})
    path.write_text(path.read_text() + "CONVOY_BIND=/scratch")
    site.add(path, {"SBATCH_ACCOUNT": "vision"})
    loaded = site.load(tmp_path, {"CONVOY_SITE": str(path)})
    assert loaded.sbatch_options == {"partition": "gpu", "account": "vision"}
    assert loaded.environment["CONVOY_BIND"] == "/scratch"


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ConvoyError, match="cannot be written.*CONVOY_SITE"):
        site.add(tmp_path, {"SBATCH_PARTITION": "gpu"})
