"""A NAVSIM tree of configurations only, written on the spot, with agents named as in public forks.

The YAML is our own; its shape and its keys are those that the forks' command lines override.
"""

import pytest

AGENTS = {
    "ego_status_mlp_agent": "checkpoint_path: null\nlr: 1e-4\n",
    "transfuser_agent": "config: {latent: false, backbone: resnet34}\nlr: 1e-4\n",
    "diffusiondrive_agent": "config: {latent: false}\ncheckpoint_path: null\nlr: 6e-4\n",
    "gtrs_diffusion_policy": (
        "config: {ckpt_path: dp_ckpt, vov_ckpt: /x, camera_width: 2048, camera_height: 512, "
        "img_vert_anchors: 16, img_horz_anchors: 64, fusion_layers: 3, num_proposals: 100}\n"
        "checkpoint_path: null\nlr: 1e-4\n"
    ),
    "gtrs_dense_vov": (
        "config: {ckpt_path: dense_ckpt, vov_ckpt: /x, camera_width: 2048, camera_height: 512, "
        "img_vert_anchors: 16, img_horz_anchors: 64, vocab_path: /x, vocab_size: 16384}\n"
        "checkpoint_path: null\npdm_gt_path: /x\nlr: 1e-4\n"
    ),
    "hydra_mdp_v8192_w_ep": "config: {vocab_size: 8192}\nlr: 1e-4\n",
    "ijepa_planning_agent": "# @package agent\nlearning_rate: 1e-4\nijepa_model_id: x\n",
}

COMMON = {
    "default_common": """
defaults:
  - train_test_split: ???
  - worker: sequential
  - _self_
distributed_timeout_seconds: 7200
verbose: false
gpu: true
proposal_sampling: {num_poses: 40, interval_length: 0.1}
""",
    "default_evaluation": """
experiment_name: ???
date_format: '%Y.%m.%d.%H.%M.%S'
experiment_uid: ${now:${date_format}}
output_dir: ${oc.env:NAVSIM_EXP_ROOT}/${experiment_name}/${experiment_uid}
navsim_log_path: ${oc.env:OPENSCENE_DATA_ROOT}/navsim_logs/${train_test_split.data_split}
fork_path: ${oc.env:NOWHERE}/${train_test_split.data_split}
""",
    "worker/sequential": "_target_: nuplan.Sequential\n",
    "train_test_split/navtrain": "data_split: trainval\ntokens: not to be read\n",
}

TRAINING = {
    "competition_split": "train_logs: [log-0, log-1, log-2]\nval_logs: [log-2]\n",
    "competition_training": """
hydra:
  run: {dir: '${output_dir}'}
  searchpath: ['pkg://navsim.planning.script.config.common']
defaults:
  - default_common
  - default_evaluation
  - competition_split
  - agent: ego_status_mlp_agent
  - _self_
split: trainval
cache_path: ${oc.env:NAVSIM_EXP_ROOT}/training_cache
use_cache_without_dataset: false
force_cache_computation: true
seed: 0
dataloader: {params: {batch_size: 64, num_workers: 16, pin_memory: true, prefetch_factor: 2}}
trainer:
  params:
    max_epochs: 100
    limit_val_batches: 0.03
    accelerator: gpu
    strategy: ddp
    precision: 32
    num_nodes: 1
    accumulate_grad_batches: 1
    default_root_dir: ${output_dir}
""",
}


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """The tree's `config/common` folder; NAVSIM_EXP_ROOT holds a training_cache."""
    config = tmp_path / "fork/navsim/planning/script/config"
    files = {f"common/{name}": text for name, text in COMMON.items()}
    files |= {f"training/{name}": text for name, text in TRAINING.items()}
    for name, text in AGENTS.items():
        target = "" if "# @package" in text else f"_target_: navsim.agents.{name}\n"
        if not target:
            text += f"_target_: navsim.agents.{name}\n"
        files[f"common/agent/{name}"] = target + text
    for name, text in files.items():
        path = config / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("NAVSIM_DEVKIT_ROOT", str(tmp_path / "fork"))
    monkeypatch.setenv("NAVSIM_EXP_ROOT", str(tmp_path / "exp"))
    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    (tmp_path / "exp/training_cache/log-0").mkdir(parents=True)
    return config / "common"
