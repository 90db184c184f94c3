"""From nodes to what a device runs: steps of CPU kernels (`cpu.py`), launches of CUDA kernels (`cuda.py`).

The families in kernels/ lower their own ops through the builders here, which decide where barriers stand (`hazards.py`), where
work memory lies (`spans.py`), into how many parts a step is cut (`parts.py`), and how equal layers are lowered once
(`layers.py`). Knows no single op, no thread and no driver.
"""
