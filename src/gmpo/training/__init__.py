"""The programs of a run: the loop, and what it asks of samplers, graders and learners by their ports."""
