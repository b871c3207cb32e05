"""A verified model becomes something that runs: ONNX, the sessions, and the proof that they agree.

May import numpy and `convnextpose`; onnx, onnxruntime, openvino, tensorrt, torch and pycuda each only inside the file that
is theirs, imported when used. Imports nothing of `pipeline` or `tools`.
"""
