"""Kernels of our own around an engine: a frame on the GPU to crops, and FP16 logits to joints and scores.

    crop.cu      frame and matrices to crops
    tail.cu      logits to joints and scores
    blocks.py    what they are told, as bytes
    program.py   compiled by NVRTC for the local GPU, and launched; cuda-python is imported only there, when used

No compiler is needed where it is installed. It imports numpy, `convnextpose` and the device layer of `engines.tensorrt`.
"""
