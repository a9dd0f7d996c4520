"""Numbers that settings and the command line bound alike. Imports nothing, so that `gmpo --help` starts at once."""

LARGEST_SEED = 2**63 - 1
"""What every generator that is seeded takes."""
