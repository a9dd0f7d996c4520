"""What `gmpo check` reports: the resolved configuration, derived numbers, memory."""
