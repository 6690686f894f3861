"""From a checkpoint to NAVSIM's PDM score."""
