"""What a run is made of, on disk."""

import json

import torch
from omegaconf import OmegaConf

from convoy.run.cost import Counted
from convoy.run.layout import RunDirectory
from convoy.training import manifest

CONFIG = OmegaConf.create(
    {"cache_path": "/data", "trainer": {"params": {"precision": "32-true", "max_epochs": 3}}}
)


def test_it_is_written_at_a_start_and_completed_at_the_end(tmp_path):
    run = RunDirectory(tmp_path)
    software = {"convoy": "0a1b", "navsim": None, "image": None, "lock": None}
    run.launches.write_text(json.dumps({"software": software}) + "\n")
    manifest.write_manifest(run, CONFIG, {"train": ("a/1", "a/2"), "validation": ("b/1",)})
    content = json.loads(run.manifest.read_text())
    assert content["software"] == software and content["packages"]["torch"]
    assert content["data"]["train"]["samples"] == 2 and content["switches"] == {
        "precision": "32-true"
    }
    assert ("gpus" in content["hardware"]) == torch.cuda.is_available()
    assert "finished" not in content and not run.edits.exists()
    run.launches.write_text(2 * (json.dumps({"software": software}) + "\n"))
    manifest.complete_manifest(run)
    done = json.loads(run.manifest.read_text())
    assert done["finished"] and done["starts"] == 2 and done["data"] == content["data"]
    manifest.write_manifest(run, CONFIG, {})  # a later start: it is no longer finished
    assert "finished" not in json.loads(run.manifest.read_text())


def test_the_fingerprint_is_of_names_and_order():
    one = manifest.fingerprint(("a/1", "a/2"))
    assert one == manifest.fingerprint(("a/1", "a/2")) and one.startswith("sha256:")
    assert len({one, manifest.fingerprint(("a/2", "a/1")), manifest.fingerprint(("a/1",))}) == 3


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").touch()
    manifest.write_manifest(RunDirectory(tmp_path / "file" / "run"), CONFIG, {})


def test_later_starts_keep_the_cost_of_a_sample(tmp_path):
    run = RunDirectory(tmp_path)
    manifest.write_manifest(run, CONFIG, {})
    assert not manifest.has_cost(run)
    manifest.add_cost(run, Counted(1.0, 3.0, 2.0))
    manifest.write_manifest(run, CONFIG, {})
    written = json.loads(run.manifest.read_text())
    assert written["cost"] == {"gflop_forward": 1.0, "gflop": 3.0, "parameters": 2.0}
    assert written["switches"] and manifest.has_cost(run)
