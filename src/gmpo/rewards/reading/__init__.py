"""Read a mathematical answer whole, or say that it cannot be read; and decide whether two such answers are equal.

`tokens` -> `grammar` (expressions) -> `values` (sets, intervals, equations, quantities ..) -> `equality`, on numbers
that `compute` gives within bounds. `judge` puts them together. Nothing is taken out of what was not read whole.
"""
