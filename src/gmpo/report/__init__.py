"""Run folders for people: one HTML file, and the same picture in a terminal. No torch; of a run nothing is changed."""
