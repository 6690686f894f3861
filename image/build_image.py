"""Builds the image from Apptainer.def, or its twin from the Dockerfile.

`make image` and `make docker` call it.

Standard library and git only, besides the builder itself. Apptainer has no layers, so the
dependencies are kept as an image of their own, named by a digest of all that goes into them.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "image: building takes Python 3.11 or newer, but this is "
        + sys.version.split()[0]
        + ": make PYTHON=…"
    )

import argparse
import contextlib
import functools
import http.server
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from checkout import CheckoutError
from compat import CompatError
from context import BUILD, Inputs, collect
from diagnosis import explain
from lock import ROOT

PASSED_ON = (
    *"PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_TRUSTED_HOST".split(),
    *"PIP_DEFAULT_TIMEOUT PIP_RETRIES".split(),
    *"http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY".split(),
)
COMPRESSION = {"zstd": "-comp zstd -Xcompression-level 3", "gzip": "-comp gzip"}
# What Apptainer unpacks in its temporary directory, and the image itself; measured, and rounded up.
SCRATCH_GB = {"cpu": 6, "cuda": 20}
IMAGE_GB = {"cpu": 2, "cuda": 8}


class BuildError(Exception):
    """What went wrong and what to do about it, in one or two lines."""


@contextlib.contextmanager
def secrets(options: argparse.Namespace) -> Iterator[Path]:
    """A folder `secrets` for the build alone, with `ca` and `mirrors`. A local folder of wheels is
    served meanwhile: no container could see it otherwise."""
    values = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    if options.apt_mirror:
        values["APT_MIRROR"] = options.apt_mirror
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()), "secrets")
        folder.mkdir()
        wheels = values.get("PIP_FIND_LINKS", "")
        if wheels and Path(wheels).is_dir():
            values["PIP_FIND_LINKS"] = stack.enter_context(served(Path(wheels)))
        (folder / "mirrors").write_text(
            "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
        )
        (folder / "ca").write_bytes(options.ca.read_bytes() if options.ca else b"")
        yield folder


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's files over HTTP, to this machine only; yields the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def execute(command: list[str | Path], log: Path, environment: dict[str, str], disk: Path) -> None:
    """Runs the builder, its output shown and kept in `log`. Raises BuildError with the reason in
    plain words."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except FileNotFoundError:
            raise BuildError(f"{command[0]} is not installed here") from None
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if sys.stdout.isatty():
                print(line, end="", flush=True)
        if process.wait() == 0:
            return
    output = log.read_text(errors="replace")
    last = [line for line in output.splitlines() if line.strip()][-1:] or ["no output"]
    free = ", ".join(
        f"{shutil.disk_usage(path).free / 1e9:.1f} GB free in {path}"
        for path in dict.fromkeys((disk, log.parent))
    )
    raise BuildError(
        f"{explain(output) or f'{command[0]} failed: {last[0]}'}\n  {free}; the whole output: {log}"
    )


def build_apptainer(options: argparse.Namespace, inputs: Inputs) -> None:
    """Writes options.output, from the kept dependencies where these are unchanged."""
    output, stamp = options.output, options.output.with_name(f"{options.output.name}.inputs")
    made_of = f"{inputs.everything} {options.compression}\n"
    if not options.fresh and output.exists() and stamp.exists() and stamp.read_text() == made_of:
        print(f"{output} is up to date ({inputs.variant}, commit {inputs.commit[:12]})")
        return
    scratch = Path(os.environ.get("APPTAINER_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    check_space(scratch, SCRATCH_GB[inputs.variant], "APPTAINER_TMPDIR=/path names another place")
    check_space(BUILD, IMAGE_GB[inputs.variant], "that is where the images are kept")
    dependencies = options.cache / f"dependencies-{inputs.variant}-{inputs.dependencies[:16]}.sif"
    log = BUILD / f"image-{inputs.variant}.log"
    log.unlink(missing_ok=True)
    with secrets(options) as secret:
        # Apptainer can only bind over what the base has, and /run is in each.
        bind = f"--bind={secret.parent}:/run"

        squashfs = f"--mksquashfs-args={COMPRESSION[options.compression]}"

        def build(target: Path, title: str, **arguments: str) -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
            print(f"{title} -> {target} (output: {log})", flush=True)
            began = time.monotonic()
            named = [
                f"--build-arg={name}={value}"
                for name, value in (inputs.arguments | arguments).items()
            ]
            test = [] if "convoy" in arguments["steps"] else ["--notest"]
            try:
                options = (*test, bind, squashfs, *named)
                execute(
                    ["apptainer", "build", "--force", *options, partial, "Apptainer.def"],
                    log,
                    {"SOURCE_DATE_EPOCH": inputs.commit_time, "APPTAINER_TMPDIR": str(scratch)},
                    scratch,
                )
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            size, seconds = target.stat().st_size, time.monotonic() - began
            print(f"{target}: {size / 1e9:.2f} GB in {seconds:.0f} s", flush=True)

        if options.fresh or not dependencies.exists():
            build(
                dependencies,
                f"{inputs.variant} dependencies",
                steps="dependencies",
                **bootstrap(inputs.base),
            )
            for old in options.cache.glob(f"dependencies-{inputs.variant}-*.sif"):
                if old != dependencies:
                    old.unlink()
        build(output, "image", steps="convoy", bootstrap="localimage", base=str(dependencies))
    stamp.write_text(made_of)


def bootstrap(base: str | None) -> dict[str, str]:
    """How Apptainer names a base: docker save's archive, a SIF, a root file system, or a
    registry's image."""
    if base is None:
        return {}
    if not Path(base).exists():
        return {"bootstrap": "docker", "base": base}
    archive = Path(base).is_file() and base.endswith((".tar", ".tar.gz"))
    return {
        "bootstrap": "docker-archive" if archive else "localimage",
        "base": str(Path(base).absolute()),
    }


def check_space(folder: Path, needed: int, advice: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed:
        raise BuildError(
            f"{folder} has {free:.1f} GB left, and the build takes {needed} GB there: {advice}"
        )


def build_docker(options: argparse.Namespace, inputs: Inputs) -> None:
    """Tags convoy:VARIANT."""
    log = BUILD / f"docker-{inputs.variant}.log"
    log.unlink(missing_ok=True)
    tag = f"convoy:{inputs.variant}"
    arguments = {name.upper(): value for name, value in inputs.arguments.items()}
    if inputs.base:
        arguments["BASE"] = inputs.base
    print(f"Docker image -> {tag} (output: {log})", flush=True)
    with secrets(options) as secret:
        execute(
            [
                options.docker,
                "build",
                "--tag",
                tag,
                "--file",
                "Dockerfile",
                *options.docker_flags.split(),
                *(f"--secret=id={path.name},src={path}" for path in sorted(secret.iterdir())),
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                BUILD / "docker",
            ],
            log,
            {"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"},
            BUILD,
        )
    print(f"built {tag}: docker run --rm {tag} doctor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("builder", choices=("apptainer", "docker"))
    parser.add_argument("--variant", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--base", help="instead of the recipe's: an image's name, archive, SIF or root file system"
    )
    parser.add_argument("--ca", type=Path, help="bundle of certificates for the build alone")
    parser.add_argument("--apt-mirror", help="Debian mirror for the build alone")
    parser.add_argument(
        "--extra", type=Path, help="requirements file, installed on top of the lock"
    )
    parser.add_argument("--weights", type=Path, help="Hugging Face home to bake in")
    parser.add_argument(
        "--compat", type=Path, help="cuda-compat-*.deb, or a folder with its libraries"
    )
    parser.add_argument("--compression", choices=tuple(COMPRESSION), default="zstd")
    parser.add_argument("--output", type=Path, default=BUILD / "convoy.sif")
    parser.add_argument(
        "--cache", type=Path, default=Path(os.environ.get("CONVOY_IMAGE_CACHE") or BUILD / "cache")
    )
    parser.add_argument("--fresh", action="store_true", help="build all of it anew")
    parser.add_argument("--docker", default="docker", help="the program to call")
    parser.add_argument("--docker-flags", default="", help="more arguments of docker build")
    options = parser.parse_args()
    # The builder runs in the checkout, wherever this was called.
    options.output, options.cache = options.output.absolute(), options.cache.absolute()
    try:
        for name in ("extra", "weights", "compat", "ca"):
            path = getattr(options, name)
            if path is not None and not path.exists():
                raise BuildError(f"{name.upper()}={path} does not exist")
        inputs = collect(
            BUILD / options.builder,
            options.variant,
            options.base,
            options.extra,
            options.weights,
            options.compat,
        )
        {"apptainer": build_apptainer, "docker": build_docker}[options.builder](options, inputs)
    except (BuildError, CheckoutError, CompatError) as error:
        sys.exit(f"image: {error}")
    except OSError as error:
        sys.exit(f"image: {error.strerror}: {error.filename}")


if __name__ == "__main__":
    main()
