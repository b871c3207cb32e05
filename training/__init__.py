"""Makes the default weights: renders people under licences that allow any use, and trains on them.

Run as modules (`python -m training.train`); not installed. Imports torch, numpy, cv2 and `convnextpose`.
"""
