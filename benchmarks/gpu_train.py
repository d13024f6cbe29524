"""A training step on one GPU: vitkit and PyTorch on the same model, images and labels.

Usage: python benchmarks/gpu_train.py [B|T|tiny] [--budget SECONDS] [--only NAME,NAME] [--out FILE]

A step is a forward pass of the whole batch, softmax cross-entropy, a backward pass, clipping to a
global norm of 1 and an AdamW update. It ends with 1 if anyone computes something else, or fails.
"""

import sys

from gpu_race import main

if __name__ == "__main__":
    sys.exit(main("train", __doc__))
