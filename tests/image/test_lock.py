"""The locked requirements: complete, of one version everywhere, free of any host or path."""

import re
import tomllib

import pytest
from lock import REQUIREMENTS, ROOT, blocks, cpu_set

VARIANTS = ("cpu", "cuda")


def read(variant: str) -> dict[str, str]:
    return blocks((REQUIREMENTS / f"{variant}.txt").read_text())


def version(block: str) -> str:
    return re.match(r"[a-z0-9._-]+==(\S+)", block)[1]


def declared() -> dict[str, str]:
    """Every pin of pyproject.toml: name -> version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return dict(requirement.split(";")[0].split("==") for group in groups for requirement in group)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_requirement_is_pinned_with_hashes(variant: str):
    text = (REQUIREMENTS / f"{variant}.txt").read_text()
    requirements = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(requirements) == len(read(variant))
    for name, block in read(variant).items():
        assert re.search(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$", block, re.MULTILINE), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_host_no_path_no_option(variant: str):
    text = (REQUIREMENTS / f"{variant}.txt").read_text()
    assert not re.search(r"https?:|file:|^\s*--(?!hash=)|@|(^|[\s(])/", text, re.MULTILINE)


def test_both_sets_have_the_same_versions():
    cpu, cuda = read("cpu"), read("cuda")
    assert set(cpu) < set(cuda)
    for name in set(cpu) - {"torch"}:
        assert cpu[name] == cuda[name]
    assert version(cpu["torch"]) == f"{version(cuda['torch'])}+cpu"


def test_only_the_cuda_set_carries_cuda():
    extra = set(read("cuda")) - set(read("cpu"))
    assert {"nvidia-cudnn-cu13", "nvidia-nccl-cu13", "triton"} <= extra
    assert all(re.match(r"nvidia-|cuda-|triton$", name) for name in extra)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_lock_is_of_this_pyproject(variant: str):
    locked = {name: version(block).removesuffix("+cpu") for name, block in read(variant).items()}
    assert declared().items() <= locked.items()


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_compromised_lightning(variant: str):
    assert version(read(variant)["pytorch-lightning"]) not in ("2.6.2", "2.6.3")


def test_torch_cpu_builds_for_both_pythons_are_allowed():
    wheels = dict(
        reversed(line.split())
        for line in (REQUIREMENTS / "torch-cpu.sha256").read_text().splitlines()
    )
    block = read("cpu")["torch"]
    for python in ("cp311", "cp312"):
        (digest,) = (
            digest for wheel, digest in wheels.items() if python in wheel and "x86_64" in wheel
        )
        assert digest in block


def test_a_new_torch_without_its_cpu_hashes_is_refused():
    cuda = read("cuda")
    cuda["torch"] = cuda["torch"].replace(f"torch=={version(cuda['torch'])}", "torch==99.0")
    sums = (REQUIREMENTS / "torch-cpu.sha256").read_text()
    with pytest.raises(SystemExit, match=r"holds \S+\+cpu, but pyproject.toml asks for 99.0"):
        cpu_set(cuda, sums)


def test_blocks_take_hashes_and_comments_along():
    first = "a-b==1 \\\n    --hash=sha256:0\n    # via c\n"
    second = "c==2 \\\n    --hash=sha256:1\n"
    assert blocks(f"# head\n{first}{second}# tail\n") == {"a-b": first, "c": second}
