"""What the built SIF does for an ordinary user: `make image VARIANT=cpu` comes first."""

import json
import os
from pathlib import Path

import pytest

from convoy.navsim.weights import write_random_backbone

CPU = (
    "trainer.params.accelerator=cpu",
    "trainer.params.precision=32-true",
    "dataloader.params.num_workers=0",
)
ISOLATED = ("--cleanenv", "--containall", "--no-home", "--pwd=/")


@pytest.fixture(scope="session")
def doctor(apptainer, sif) -> dict[str, dict[str, str]]:
    report = json.loads(apptainer.run("run", *ISOLATED, sif, "doctor", "--json"))
    assert report["ok"], report
    return {finding["name"]: finding for finding in report["findings"]}


def test_doctor_finds_what_the_recipe_pins(doctor):
    assert doctor["image"]["found"].startswith("cpu, commit ")
    assert doctor["python"]["found"].startswith("3.11.")
    assert doctor["torch"]["found"] == "2.13.0+cpu, without CUDA"
    assert "commit 0a380a9063d7, 46 YAML files, /opt/navsim" in doctor["navsim"]["found"]
    assert "commit ce3c323af01c" in doctor["nuplan-devkit"]["found"]
    assert doctor["isolation"]["status"] == doctor["packages"]["status"] == "ok"


def test_doctor_sees_missing_gpus_and_says_so_in_one_line(apptainer, sif):
    done = apptainer.command("apptainer", "--quiet", "run", *ISOLATED, sif, "doctor", "--gpus", "4")
    assert done.returncode == 3
    assert (
        "convoy doctor: GPUs: 4 expected, 0 seen" in done.stdout and "Traceback" not in done.stdout
    )


def test_nothing_of_the_host_leaks_in(apptainer, sif, workspace: Path):
    """A fake torch in ~/.local and on PYTHONPATH, a conda environment: all would win in a naive
    image."""
    home = workspace / "home"
    for folder in (home / ".local/lib/python3.11/site-packages/torch", home / "modules/torch"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise SystemExit('the fake torch was imported')")
    poison = dict.fromkeys(("CONDA_PREFIX", "VIRTUAL_ENV", "PYTHONHOME"), str(home))
    poison["PYTHONPATH"] = str(home / "modules")
    program = "import sys, torch; print(torch.__file__, sys.prefix)"
    expected = "/opt/convoy/venv/lib/python3.11/site-packages/torch/__init__.py /opt/convoy/venv\n"
    assert (
        apptainer.run("exec", f"--home={home}", sif, "python", "-c", program, **poison) == expected
    )
    assert apptainer.run("exec", *ISOLATED, sif, "python", "-c", program, **poison) == expected
    assert json.loads(apptainer.run("run", f"--home={home}", sif, "doctor", "--json", **poison))[
        "ok"
    ]

    # On purpose it works, and the doctor says so.
    chosen = f"--env=PYTHONPATH={home}/modules"
    fake = apptainer.command(
        "apptainer", "--quiet", "exec", f"--bind={home}", chosen, sif, "python", "-c", program
    )
    assert "the fake torch was imported" in fake.stdout


def test_the_image_is_read_only_and_nothing_is_written_beside_the_run(
    apptainer, sif, workspace: Path
):
    out = workspace / "out"
    out.mkdir()
    out.chmod(0o777)
    bind = f"--bind={out}:/out"
    apptainer.run(
        "run", *ISOLATED, bind, sif, "synth", "/out/cache", "--samples", "32", "--logs", "4"
    )
    output = apptainer.run(
        "run",
        *ISOLATED,
        bind,
        "--env=CONVOY_PROCESSES_PER_NODE=2",
        sif,
        "train",
        *CPU,
        "agent=bev_fusion_agent",
        "cache_path=/out/cache",
        "run_dir=/out/run",
        "global_batch=8",
        "data.val_fraction=0.25",
        "trainer.params.max_epochs=1",
    )
    assert "1 node(s) x 2 process(es)" in output and "finished" in output
    assert json.loads((out / "run/results.json").read_text())["world_size"] == 2
    assert sorted(path.name for path in out.iterdir()) == ["cache", "run"]
    refused = apptainer.command(
        "apptainer", "--quiet", "exec", *ISOLATED, sif, "touch", "/opt/convoy/new"
    )
    assert refused.returncode != 0 and "Read-only file system" in refused.stdout


@pytest.fixture
def transfuser_cache(apptainer, sif, workspace: Path) -> Path:
    bind = f"--bind={workspace}:/out"
    apptainer.run(
        "run", *ISOLATED, bind, sif, "synth", "/out/cache", "--samples", "16", "--logs", "2"
    )
    return workspace / "cache"


TRANSFUSER = (
    "agent=transfuser_agent",
    "cache_path=/out/cache",
    "run_dir=/out/run",
    "global_batch=8",
    "data.val_fraction=0.5",
    "trainer.params.max_epochs=1",
    "trainer.params.limit_train_batches=1",
)


def test_transfuser_trains_unedited_with_bound_weights(
    apptainer, sif, workspace: Path, transfuser_cache
):
    """A Hugging Face home filled elsewhere, as huggingface_hub lays it out; the weights themselves
    are random."""
    model = workspace / "weights/hub/models--timm--resnet34.a1_in1k"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0" * 40)
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    write_random_backbone("resnet34", snapshot)
    output = apptainer.run(
        "run",
        *ISOLATED,
        f"--bind={workspace}:/out",
        f"--bind={workspace}/weights:/opt/convoy/weights",
        "--env=CONVOY_PROCESSES_PER_NODE=2",
        sif,
        "train",
        *CPU,
        *TRANSFUSER,
    )
    assert "finished" in output
    assert json.loads((workspace / "run/results.json").read_text())["world_size"] == 2


def test_missing_weights_are_told_with_the_remedy(
    apptainer, sif, workspace: Path, transfuser_cache
):
    done = apptainer.command(
        "apptainer",
        "--quiet",
        "run",
        *ISOLATED,
        f"--bind={workspace}:/out",
        sif,
        "train",
        *CPU,
        *TRANSFUSER,
    )
    assert done.returncode == 1
    assert "downloads pretrained weights" in done.stdout
    assert "--bind" in done.stdout and "/opt/convoy/weights" in done.stdout


def test_a_fork_is_bound_over_the_bundled_navsim(apptainer, sif, workspace: Path):
    agents = workspace / "fork/navsim/agents"
    agents.mkdir(parents=True)
    (agents.parent / "__init__.py").write_text("whose = 'mine'")
    program = "import navsim; print(navsim.whose, navsim.__file__)"
    output = apptainer.run(
        "exec", *ISOLATED, f"--bind={workspace}/fork:/opt/navsim", sif, "python", "-c", program
    )
    assert output == "mine /opt/navsim/navsim/__init__.py\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["bash", "-c", 'echo "$1"', "-", "a  b"], "a  b\n"),
        (["help"], "usage: convoy"),
        (["image", "manifest"], '"variant": "cpu"'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_first_word_chooses(apptainer, sif, arguments, expected):
    assert expected in apptainer.run("run", *ISOLATED, sif, *arguments)


def test_an_unknown_word_lists_the_commands(apptainer, sif):
    done = apptainer.command("apptainer", "--quiet", "run", *ISOLATED, sif, "trian")
    assert done.returncode == 2 and "invalid choice: 'trian' (choose from" in done.stdout


def test_what_is_there_is_what_was_built(apptainer, sif):
    """Computed anew over every file, as another user and under another runtime than the build."""
    manifest = json.loads(apptainer.run("run", *ISOLATED, sif, "image", "manifest"))
    assert apptainer.run("run", *ISOLATED, sif, "image", "digest") == f"{manifest['digest']}\n"


def test_labels_and_help(apptainer, sif):
    labels = json.loads(apptainer.run("inspect", "--json", sif))["data"]["attributes"]["labels"]
    manifest = json.loads(apptainer.run("run", *ISOLATED, sif, "image", "manifest"))
    assert labels["org.opencontainers.image.revision"] == manifest["commit"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert f"sha256:{labels['convoy.lock']}" == manifest["lock"]
    assert labels["convoy.navsim"] == manifest["sources"]["navsim"]
    assert "apptainer run convoy.sif train" in apptainer.run("run-help", sif)


def test_the_licences_of_all_parts_are_there(apptainer, sif):
    for path in ("/opt/convoy/LICENSE", "/opt/navsim/LICENSE", "/opt/nuplan-devkit/LICENSE.txt"):
        assert "Apache License" in apptainer.run("exec", *ISOLATED, sif, "cat", path)


def test_make_shell_puts_the_checkout_over_the_package(apptainer, sif):
    typed = "grep -c /opt/convoy/src /proc/mounts; convoy --version"
    done = apptainer.command("bash", "-c", f"echo '{typed}' | make --no-print-directory shell")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-2:] == ["1", "convoy 0.1.0"]


def test_a_second_build_holds_the_same(apptainer, sif):
    """Built from nothing once more.

    Not where a cache that outlives this clone knows it of these inputs.
    """
    options = {name: os.environ[name] for name in ("BASE", "CA") if os.environ.get(name)}
    inputs = Path(f"{sif}.inputs").read_text().split()[0]
    cache = os.environ.get("CONVOY_IMAGE_CACHE")
    known = Path(cache, f"reproduced-{inputs}") if cache else None
    if known is None or not known.exists():
        done = apptainer.command(
            "make", "--no-print-directory", "image-reproducible", "VARIANT=cpu", **options
        )
        assert done.returncode == 0, done.stdout
        assert "both builds hold the same" in done.stdout
        if known:
            known.touch()
