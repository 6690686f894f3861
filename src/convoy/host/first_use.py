"""What a job file cannot know of a cluster: its partitions, and the accounts of this user."""

import getpass
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from convoy.host import cluster
from convoy.host.cluster_model import Partition


@dataclass(frozen=True)
class Word:
    """A setting whose value in the job file this cluster does not know."""

    name: str  # in the site's file
    option: str  # of sbatch
    value: str  # in the job file
    choices: tuple[str, ...]
    default: str

    def __str__(self) -> str:
        kind = "partitions" if self.option == "partition" else "accounts"
        return f"{self.name} (your {kind}: {', '.join(self.choices)})"


def missing_words(job: Mapping[str, str], given: Collection[str]) -> list[Word]:
    """The settings that are needed before this user's first job: `job` holds the job file's
    options, `given` names those that the command line, the environment or the site's file replace.

    None where SLURM's commands are not here: later checks report that.
    """
    try:
        known = cluster.partitions()
    except cluster.SlurmUnavailable:
        return []
    limits = cluster.limits(getpass.getuser())
    accounts = sorted(limits.accounts) if limits else []
    return compare(job, given, tuple(known.values()), accounts)


def compare(
    job: Mapping[str, str],
    given: Collection[str],
    partitions: Sequence[Partition],
    accounts: Sequence[str],
) -> list[Word]:
    """`accounts` is empty where the cluster has no accounting: then any is taken."""
    found = []
    names = tuple(partition.name for partition in partitions)
    usual = next((partition.name for partition in partitions if partition.is_default), "")
    for option, choices, default in (
        ("partition", names, usual),
        ("account", tuple(accounts), ""),
    ):
        value = job.get(option, "")
        if option not in given and choices and value not in choices:
            default = default or choices[0]
            found.append(Word(f"SBATCH_{option.upper()}", option, value, choices, default))
    return found
