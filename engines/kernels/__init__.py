"""This project's CUDA kernels before and after an engine: from a frame on the GPU to crops, and from FP16 logits to joints.

    crop.cu      frame and matrices to crops
    tail.cu      logits to joints and scores
    blocks.py    the kernels' parameters, as bytes
    program.py   compiles them with NVRTC for the local GPU, and launches them; imports cuda-python when it is used

Installing the package needs no compiler. It imports numpy, `convnextpose` and the device layer of `engines.tensorrt`.
"""
