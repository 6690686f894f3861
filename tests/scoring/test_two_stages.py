"""A split of two stages, like navhard: figures of NAVSIM's run_pdm_score.py."""

import csv
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

SPLIT = "warmup_two_stage"
HISTORY, FUTURE = 4, 8


@pytest.fixture(scope="module")
def second_stage(raw_data, navsim_tree, tmp_path_factory):
    """Synthetic scenes in NAVSIM's form below the returned folder, and the overrides of a split
    that has them: of each log one pair of scenes, and two pairs that follow."""
    from convoy.navsim.importing import make_importable

    make_importable()
    import navsim.common.dataclasses as navsim

    folder = tmp_path_factory.mktemp("second") / "synthetic_scene_pickles"
    folder.mkdir()
    logs = raw_data.root / "navsim_logs" / "mini"
    tokens, synthetic, mapping = [], [], []

    def write(frames, initial, follows):
        frames = frames[initial - HISTORY + 1 : initial + FUTURE + 1]
        token = f"{frames[HISTORY - 1]['token']}a"  # of 17 characters: synthetic
        scene = navsim.Scene.from_scene_dict_list(
            frames, None, HISTORY, FUTURE, navsim.SensorConfig.build_no_sensors()
        )
        scene.frames[HISTORY - 1].token = token
        data = scene.scene_metadata
        data.scene_token = data.initial_token = token
        data.corresponding_original_scene = follows["token"]
        scene.save_to_disk(folder)
        return token

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(navsim, "NUPLAN_MAPS_ROOT", raw_data.environment["NUPLAN_MAPS_ROOT"])
        for path in sorted(logs.glob("*.pkl")):
            frames = pickle.loads(path.read_bytes())
            previous, now = frames[3], frames[4]
            pairs = [
                [write(frames, later, frames[12]), write(frames, later - 1, frames[11])]
                for later in (6, 8)
            ]
            tokens += [now["token"], previous["token"]]
            synthetic += [token for pair in pairs for token in pair]
            mapping.append([now["token"], previous["token"], pairs])
    names = ",".join(path.stem for path in sorted(logs.glob("*.pkl")))
    filters = "train_test_split.scene_filter"
    return folder, [
        "train_test_split.data_split=mini",
        f"train_test_split.reactive_all_mapping={json.dumps(mapping).replace(' ', '')}",
        f"{filters}.log_names=[{names}]",
        f"{filters}.tokens={json.dumps(tokens)}",
        f"{filters}.reactive_synthetic_initial_tokens={json.dumps(synthetic)}",
        f"synthetic_scenes_path={folder}",
        f"synthetic_sensor_path={folder}",
    ]


def table(path: Path) -> dict[str, list[str]]:
    return {row[1]: row[2:] for row in csv.reader(path.open())}


def test_two_stages_equal_navsims_script(
    second_stage, navsim_tree, raw_data, tmp_path, monkeypatch
):
    from convoy.commands.__main__ import main

    folder, words = second_stage
    for name, value in raw_data.environment.items():
        monkeypatch.setenv(name, value)
    from convoy.navsim.importing import make_importable

    make_importable()
    import navsim.common.dataclasses

    monkeypatch.setattr(
        navsim.common.dataclasses, "NUPLAN_MAPS_ROOT", raw_data.environment["NUPLAN_MAPS_ROOT"]
    )
    out, cache = tmp_path / "scores", tmp_path / "metric_cache"
    where = [f"--out={out}", f"metric_cache_path={cache}", f"--split={SPLIT}", "--workers=1"]
    assert main(["score", "agent=constant_velocity_agent", *where, *words]) == 0
    script = navsim_tree / "navsim/planning/script/run_pdm_score.py"
    results = tmp_path / "navsim"
    ran = subprocess.run(
        [
            sys.executable,
            *("-m", "convoy.navsim.torchvision_cpu"),
            script,
            f"train_test_split={SPLIT}",
            "agent=constant_velocity_agent",
            "worker=sequential",
            "experiment_name=x",
            f"output_dir={results}",
            f"metric_cache_path={cache}",
            *words,
        ],
        env=os.environ | {"NAVSIM_EXP_ROOT": str(tmp_path), "TQDM_DISABLE": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    (written,) = results.glob("*.csv")
    ours, theirs = table(out / "scores.csv"), table(written)
    assert len(ours) == 1 + 4 + 8 + 3, "a header, scenes of both stages, three averages"
    assert ours == theirs
    found = json.loads((out / "summary.json").read_text())
    assert found["tokens"] == 12
    assert found["score"] == float(theirs["extended_pdm_score_combined"][-1])
    assert found["metrics"]["score"]["low"] is None
