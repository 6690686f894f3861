"""`convoy`: the command. Each subcommand imports what it needs when it runs, so that --help is immediate."""

import argparse
import sys
from collections.abc import Sequence

from convoy import __version__
from convoy.errors import ConvoyError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the process's exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["train"] and not {"-h", "--help"} & set(arguments[1:2]):
        from convoy.train import main as train  # its arguments are Hydra's, passed on untouched

        return train(arguments[1:])
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except ConvoyError as error:
        print(f"convoy: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    from convoy import check_command, doctor, image_command
    from convoy.data import synth_command

    parser = argparse.ArgumentParser(
        prog="convoy", description="Train NAVSIM agents on many SLURM nodes from one image."
    )
    parser.add_argument("--version", action="version", version=f"convoy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train on this machine (several ranks: entrypoint/train.sh)",
        description="Arguments are those of NAVSIM's run_training (Hydra overrides), for example: "
        "agent=transfuser_agent cache_path=/data/cache global_batch=64",
    )
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    for name, command, summary in (
        ("synth", synth_command, "write a synthetic data set in NAVSIM's cache format"),
        ("check", check_command, "check a training's configuration against a launch, without starting it"),
        ("doctor", doctor, "what a run can count on here: GPUs, driver, NCCL, NAVSIM, shared memory, paths"),
        ("image", image_command, "what the image that this runs in is made of, and its digest"),
    ):
        sub = commands.add_parser(name, help=summary)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
