"""SLURM's reasons, and spans of time, in plain words.

The reasons are those of squeue's manual page, section JOB REASON CODES.
"""

import re

REASONS = {
    "Priority": "jobs with a higher priority are before it",
    "Resources": "it is next; it waits for nodes to come free",
    "Dependency": "it waits for another job that it depends on",
    "BeginTime": "its begin time has not come (a requeued job is held for two minutes)",
    "JobHeldUser": "you hold it: scontrol release JOB lets it go on",
    "JobHeldAdmin": "an administrator holds it",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs now",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows: it will never start",
    "PartitionTimeLimit": "it asks for more time than the partition allows: it will never start",
    "InvalidAccount": "the account is not valid: it will never start",
    "InvalidQOS": "the QOS is not valid: it will never start",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "Reservation": "it waits for its reservation to begin",
    "Licenses": "it waits for a license",
    "JobArrayTaskLimit": "its array runs as many tasks at once as it may",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node has what --constraint asks for: it will never start",
    "Cleaning": "SLURM is still ending its last start",
    "Prolog": "the nodes are being prepared",
    "launch failed requeued held": "a launch failed and SLURM holds it: scontrol release JOB "
    "tries again",
    "JobLaunchFailure": "a launch failed",
    "None": "SLURM has not looked at it yet",
}
LIMITS = (
    (
        r"QOS.*(GRES|TRES|GPU|Cpu|Node|Mem).*PerUser",
        "your running jobs use what your QOS allows a user",
    ),
    (r"QOS.*MaxWall", "it asks for more time than its QOS allows"),
    (r"QOS.*(MaxJobs|JobsPer)", "you run as many jobs as your QOS allows"),
    (r"QOS", "a limit of its QOS is reached"),
    (r"Assoc.*(GRES|TRES|GPU|Cpu|Node|Mem)", "your account uses what it may use at once"),
    (r"Assoc", "a limit of your account is reached"),
)


def reason(code: str) -> str:
    """Why a job waits; the code itself where nothing better is known."""
    name = code.strip("()").partition(",")[0].strip()
    if name in REASONS:
        return REASONS[name]
    for pattern, words in LIMITS:
        if re.match(pattern, name):
            return f"{words} ({name})"
    return name


def slurm_time(seconds: float) -> str:
    """`1-12:00:00`, as sbatch reads it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02d}:{minutes:02d}:{rest:02d}"
    return f"{days}-{clock}" if days else clock
