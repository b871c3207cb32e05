"""The network, its variants, checkpoints, skeletons, the camera and the crop, scores, and the default weights.

May import numpy; torch only inside `network.py` and `checkpoint.py`, which are the network. Imports
nothing of `engines`, `pipeline` or `tools`.
"""
