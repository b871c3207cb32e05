"""Makes the default weights: rendered people with licences that allow any use, and the training on them.

Run as modules (`python -m training.train`); not installed. Imports torch, numpy, cv2 and `convnextpose`.
"""
