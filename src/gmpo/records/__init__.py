"""What a run leaves behind: rollouts, batches, the run folder."""
