"""The scores are NAVSIM's own script's, to the last digit."""

import csv
import json
import math
import os
import subprocess
import sys

import pytest

SPLIT = "train_test_split.scene_filter.frame_interval=1"

# Runs NAVSIM's scripts in one process, unedited: their imports take longer than their work.
RUN_ALL = """
import json, runpy, sys
import convoy.navsim.torchvision_cpu
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
"""
TWO_SCENES = (
    "train_test_split.scene_filter.log_names=[synthetic-mini-2-000]",
    "train_test_split.scene_filter.max_scenes=2",
)


@pytest.fixture(scope="module")
def agents(checkpoint):
    """Overrides and checkpoint of each agent; TransFuser on two scenes, for it takes
    seconds for each."""
    mlp, mlp_file = checkpoint("ego_status_mlp_agent")
    transfuser, transfuser_file = checkpoint("transfuser_agent")
    return {
        "human": (["agent=human_agent"], None),
        "constant_velocity": (["agent=constant_velocity_agent"], None),
        "ego_status_mlp": (mlp, mlp_file),
        "transfuser": ([*transfuser, *TWO_SCENES], transfuser_file),
    }


@pytest.fixture(scope="module")
def navsim(navsim_tree, raw_data, agents, tmp_path_factory):
    """The CSV that NAVSIM's script writes for each agent."""
    results = tmp_path_factory.mktemp("navsim")
    scripts = navsim_tree / "navsim/planning/script"
    common = ["train_test_split=mini", SPLIT, "worker=sequential"]
    calls = [[str(scripts / "run_metric_caching.py"), *common]]
    for name, (words, file) in agents.items():
        weights = [f"agent.checkpoint_path={file}"] if file else []
        out = [f"experiment_name={name}", f"output_dir={results / name}"]
        script = str(scripts / "run_pdm_score_one_stage.py")
        calls.append([script, *common, *words, *weights, *out])
    environment = {"NAVSIM_EXP_ROOT": str(results), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(calls)],
        env=os.environ | raw_data.environment | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    return {name: next((results / name).glob("*.csv")) for name in agents}


def table(path):
    """The header, and the columns of each row but its number by token."""
    header, *rows = csv.reader(path.open())
    return header, {row[1]: row[2:] for row in rows}


@pytest.mark.parametrize("name", ["human", "constant_velocity", "ego_status_mlp", "transfuser"])
def test_scores_equal_those_of_navsims_script(score, agents, navsim, name):
    words, file = agents[name]
    what = [file] if file else []
    code, out = score(*what, *words, "--no-baselines", "--device=cpu")
    assert code == 0
    header, ours = table(out / "scores.csv")
    their_header, theirs = table(navsim[name])
    assert header == their_header
    average, their_average = ours.pop("average_all_frames"), theirs.pop("average_all_frames")
    assert ours == theirs and len(ours) >= 2
    # NAVSIM adds its rows up in an order that differs from call to call.
    assert average[0] == their_average[0]
    for mean, their_mean in zip(average[1:], their_average[1:], strict=True):
        assert math.isclose(float(mean), float(their_mean), rel_tol=1e-14)


def test_navsims_script_reads_the_metric_cache_that_convoy_made(metric_cache, score, raw_data):
    code, _ = score("agent=human_agent", "--no-baselines")
    assert code == 0
    from navsim.common.dataloader import MetricCacheLoader

    loader = MetricCacheLoader(metric_cache)
    assert len(loader) == raw_data.samples
    assert loader.get_from_token(loader.tokens[0]).log_name.startswith("synthetic-mini")
