"""Where Convoy's defaults are not those of NAVSIM's run_training, and what NAVSIM's keys without an
effect on a training are. docs/training.md has the reasons; a test compares both with NAVSIM."""

from typing import Any

# Key -> NAVSIM's default as its YAML has it, Convoy's. A key that NAVSIM's YAML lacks has ABSENT.
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "experiment_name": ("???", "train"),
    "trainer.params.precision": ("16-mixed", None),
    "experiment_uid": ("${now:${date_format}}", None),
    "output_dir": ("${oc.env:NAVSIM_EXP_ROOT}/${experiment_name}/${experiment_uid}", None),
    "use_cache_without_dataset": (False, True),
    "force_cache_computation": (True, False),
    "trainer.params.num_nodes": (1, None),
    "trainer.params.accumulate_grad_batches": (1, None),
    "trainer.params.default_root_dir": ("${output_dir}", "${run_dir}"),
    "navsim_log_path": (
        "${oc.env:OPENSCENE_DATA_ROOT}/navsim_logs/${train_test_split.data_split}",
        None,
    ),
    "original_sensor_path": (
        "${oc.env:OPENSCENE_DATA_ROOT}/sensor_blobs/${train_test_split.data_split}",
        None,
    ),
    "sensor_blobs_path": (
        "${oc.env:OPENSCENE_DATA_ROOT}/sensor_blobs/${train_test_split.data_split}",
        None,
    ),
    "synthetic_sensor_path": (
        "${oc.env:OPENSCENE_DATA_ROOT}/navhard_two_stage/sensor_blobs",
        None,
    ),
    "synthetic_scenes_path": (
        "${oc.env:OPENSCENE_DATA_ROOT}/navhard_two_stage/synthetic_scene_pickles",
        None,
    ),
    "metric_cache_path": ("${oc.env:NAVSIM_EXP_ROOT}/metric_cache", None),
}

# Keys that NAVSIM reads when it builds a cache or scores, or nowhere; a training ignores them.
NO_EFFECT = (
    "split",
    "navsim_log_path",
    "original_sensor_path",
    "sensor_blobs_path",
    "synthetic_sensor_path",
    "synthetic_scenes_path",
    "metric_cache_path",
    "test_logs",
    "distributed_timeout_seconds",
    "selected_simulation_metrics",
    "verbose",
    "logger_level",
    "logger_format_string",
    "traffic_agents",
    "max_number_of_workers",
    "gpu",
    "date_format",
    "experiment_uid",
)
