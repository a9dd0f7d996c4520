"""Run folders for people: one HTML file, and the same picture in a terminal. No torch, and nothing is written to a run."""
