"""Read a mathematical answer whole, or say that it cannot be read; and decide whether two answers that were read are equal.

`tokens` -> `grammar` (expressions) -> `values` (sets, intervals, equations, quantities ..) -> `equality`, on numbers
computed by `compute` within bounds. Nothing is taken out of what was not read whole.
"""
