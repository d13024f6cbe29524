"""A training step on the CPU: vitkit, PyTorch and JAX on the same model and images.

Usage: python benchmarks/cpu_train.py [S|B|tiny] [--rounds N] [--only NAME,NAME] [--out FILE]

A step is a forward pass of the whole batch, softmax cross-entropy, a backward pass, clipping to a
global norm of 1 and an AdamW update. It ends with 1 if anyone computes something else, or fails.
"""

import sys

from race import main

if __name__ == "__main__":
    sys.exit(main("train", __doc__))
