"""slurm/score.slurm on a real SLURM: two nodes, and a job that is killed."""
