"""Where kernels are kept, for torch's compiler and for the driver."""

import os

import pytest
from omegaconf import DictConfig, OmegaConf

from convoy.run.kernel_cache import keep_what_the_driver_compiles, kernel_cache


def config(**changes: object) -> DictConfig:
    settings = {"compile_cache": None, "run_dir": None} | changes
    return OmegaConf.create(settings | {"trainer": {"params": {"accelerator": "gpu"}}})


@pytest.fixture(autouse=True)
def image(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_CACHE_PATH", "/tmp/of-this-node")
    monkeypatch.setenv("NAVSIM_EXP_ROOT", str(tmp_path / "exp"))


def test_all_experiments_share_one_folder(tmp_path):
    shared = tmp_path / "exp" / "compile-cache"
    assert kernel_cache(config()) == shared
    assert kernel_cache(config(run_dir=f"{tmp_path}/exp/transfuser/17")) == shared
    assert kernel_cache(config(compile_cache="/scratch/kernels")).as_posix() == "/scratch/kernels"


def test_the_driver_keeps_its_kernels_there(tmp_path):
    keep_what_the_driver_compiles(config(compile_cache=str(tmp_path / "kernels")))
    assert os.environ["CUDA_CACHE_PATH"] == str(tmp_path / "kernels" / "cuda")
    assert (tmp_path / "kernels" / "cuda").is_dir()


def test_on_the_cpu_there_is_no_folder(tmp_path):
    on_cpu = config()
    on_cpu.trainer.params.accelerator = "cpu"
    keep_what_the_driver_compiles(on_cpu)
    assert os.environ["CUDA_CACHE_PATH"] == "/tmp/of-this-node"
    assert not (tmp_path / "exp").exists()


def test_a_folder_that_cannot_be_written_leaves_the_drivers_own(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    keep_what_the_driver_compiles(config(compile_cache=str(tmp_path / "file" / "kernels")))
    assert os.environ["CUDA_CACHE_PATH"] == "/tmp/of-this-node"
    assert "compile_cache=/path" in caplog.text
