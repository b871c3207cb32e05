"""Turns a verified model into something that runs: ONNX, the sessions, and the proof that their results agree.

May import numpy and `convnextpose`. onnx, onnxruntime, openvino, tensorrt, torch and pycuda are each imported only inside the
file that wraps them, when it is used. Imports nothing of `pipeline` or `tools`.
"""
