"""Inference on one GPU: the logits of a batch, by vitkit and PyTorch.

Usage: python benchmarks/gpu_infer.py [B|T|tiny] [--budget SECONDS] [--only NAME,NAME] [--out FILE]

It ends with 1 if anyone computes something else, or fails.
"""

import sys

from gpu_race import main

if __name__ == "__main__":
    sys.exit(main("infer", __doc__))
