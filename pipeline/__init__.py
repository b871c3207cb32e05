"""Sources, person boxes, tracking, stages, threads, timing, drawing and sinks: from frames to poses.

May import numpy, av, cv2, `convnextpose` and `engines`. Imports nothing of `tools`.
"""
