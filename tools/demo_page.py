"""Draw a page for the text detector: ``python tools/demo_page.py OUT.npz HEIGHT WIDTH``.

Dark strokes in rows on a light page. On noise alone a text detector answers next to nothing, and
next to nothing is equal to anything.
"""

from __future__ import annotations

import sys

import numpy as np


def main(path: str, height: int, width: int) -> None:
    """Write the page as the input ``x``, shape 1 x 3 x height x width, float32."""
    image = np.ones((1, 3, height, width), np.float32)
    for y in range(8, height - 20, 32):
        for x in range(6, width - 12, 12):
            image[:, :, y : y + 20, x : x + 3] = -1
            image[:, :, y + x % 17 : y + x % 17 + 3, x : x + 9] = -1
    noise = np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
    np.savez(path, x=image + np.float32(0.1) * noise)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
