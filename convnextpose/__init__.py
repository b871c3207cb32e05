"""The network, its variants, checkpoints, skeletons, the camera and the crop, scores, and the default weights.

May import numpy; torch only inside `network.py`, and when used inside `containers.py` and `checkpoint.py`. Imports nothing of
`engines`, `pipeline` or `tools`.
"""
