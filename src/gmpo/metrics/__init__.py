"""Metrics as pure functions of records."""
