"""Inference on the CPU: the logits of a batch, by vitkit, PyTorch and JAX.

Usage: python benchmarks/cpu_infer.py [S|B|tiny] [--rounds N] [--only NAME,NAME] [--out FILE]

It ends with 1 if anyone computes something else, or fails.
"""

import sys

from race import main

if __name__ == "__main__":
    sys.exit(main("infer", __doc__))
