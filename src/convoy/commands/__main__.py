"""`convoy`: the command.

Only the module of the subcommand that runs is imported, so that --help is immediate.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from convoy import __version__
from convoy.errors import ConvoyError

# Name, the module with its `add_arguments` and `run`, and one line of help.
COMMANDS = (
    ("train", "convoy.commands.train", "train on this node, a rank per GPU"),
    (
        "profile",
        "convoy.commands.profile",
        "trace a few warm steps of a training: where their time goes, on one page",
    ),
    ("synth", "convoy.commands.synth", "write a synthetic data set in NAVSIM's cache format"),
    ("prepare", "convoy.commands.prepare", "pack a split's features and targets into shards"),
    ("data", "convoy.commands.data", "look into packed shards: info, verify, ls"),
    (
        "check",
        "convoy.commands.check",
        "check a training's configuration against a launch, without starting it",
    ),
    (
        "doctor",
        "convoy.commands.doctor",
        "what a run can count on here: GPUs, driver, NCCL, NAVSIM, shared memory, paths",
    ),
    (
        "image",
        "convoy.commands.image",
        "what the image that this runs in is made of, and its digest",
    ),
    (
        "submit",
        "convoy.commands.submit",
        "check a training before it queues, then submit it with sbatch",
    ),
    (
        "plan",
        "convoy.commands.plan",
        "what would finish when: partitions x nodes, and the best row",
    ),
    ("sweep", "convoy.commands.sweep", "the points of a sweep in one table and one picture"),
    (
        "score",
        "convoy.commands.score",
        "NAVSIM's PDM score of a checkpoint, on all cores of one machine or many nodes",
    ),
    ("watch", "convoy.commands.watch", "one job, live: why it waits, where it is, what to change"),
    ("list", "convoy.commands.list", "runs and jobs in one table"),
    ("logs", "convoy.commands.logs", "what a job or one of its ranks says"),
    ("report", "convoy.commands.report", "a run, or several side by side, on one page"),
    ("diff", "convoy.commands.diff", "what differs between two runs"),
    ("rerun", "convoy.commands.rerun", "submit a run's training again, as a new run"),
    ("stop", "convoy.commands.stop", "a job writes a checkpoint, then ends"),
    ("completion", "convoy.commands.completion", "what a shell needs to complete convoy's words"),
    (
        "rendezvous",
        "convoy.commands.rendezvous",
        "what slurm/launch.sh asks on the first node of a job",
    ),
    ("verdict", "convoy.commands.verdict", "how a start of a run ended, and what follows"),
    (
        "unpacked",
        "convoy.commands.unpacked",
        "what slurm/unpack.sh asks: where on a node's disk the image belongs",
    ),
    (
        "score-waiting",
        "convoy.commands.score_waiting",
        "what slurm/score_waiting.sh asks beside a training",
    ),
    ("ask-to-stop", "convoy.commands.ask_to_stop", "what slurm/launch.sh says at a signal"),
)


HYDRA_FLAGS = ("--config-name", "-cn", "--config-dir", "-cd", "--config-path", "-cp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the process's exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    arguments, flags = _hydra_flags(arguments)
    parser = _parser(arguments[:1])
    parsed, rest = parser.parse_known_args(arguments)
    # argparse does not take overrides before and after an option.
    if any(not word.startswith("~") and ("=" not in word or word[0] == "-") for word in rest) or (
        (rest or flags) and "overrides" not in parsed
    ):
        parser.error(f"unrecognized arguments: {' '.join(flags + rest)}")
    if rest or flags:
        parsed.overrides = [*flags, *parsed.overrides, *rest]
    try:
        return parsed.run(parsed)
    except ConvoyError as error:
        print(f"convoy: {error}", file=sys.stderr)
        return error.exit_code


def _hydra_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without Hydra's own flags, and those as one word each: --config-name=NAME. To
    argparse a flag's value would be an override."""
    rest: list[str] = []
    flags: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in HYDRA_FLAGS:
            flags.append(f"{word}={next(words, '')}")
        else:
            (flags if word.partition("=")[0] in HYDRA_FLAGS else rest).append(word)
    return rest, flags


def _parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    """With the arguments of the subcommand `wanted`; the others have their line of help only."""
    parser = argparse.ArgumentParser(
        prog="convoy", description="Train NAVSIM agents on many SLURM nodes from one image."
    )
    parser.add_argument("--version", action="version", version=f"convoy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module, summary in COMMANDS:
        sub = commands.add_parser(name, help=summary)
        if name in wanted:
            command = import_module(module)
            command.add_arguments(sub)
            sub.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
