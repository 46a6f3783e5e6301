"""Write the documentation's table of options from their declarations.

    python -m tools.option_table docs/command-line.md

The table stands between two comments; all else in the file stays as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from patchconv_deploy.options import option_table

__all__ = ["written"]

_BEGIN = "<!-- options: written by `python -m tools.option_table docs/command-line.md` -->"
_END = "<!-- end of options -->"


def written(text: str) -> str:
    """Return a text with the table between its two comments.

    Raises:
        ValueError: The comments do not stand in it once each, in this order.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end) or _BEGIN in after or _END in before + after:
        raise ValueError(f"{_BEGIN} and {_END} must stand once each, one after the other")
    return f"{before}{begin}\n\n{option_table()}\n\n{end}{after}"


def main() -> None:
    """Write the table into the file that is named."""
    if len(sys.argv) != 2:
        sys.exit(str(__doc__))
    file = Path(sys.argv[1])
    try:
        file.write_text(written(file.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {file}: {error}")


if __name__ == "__main__":
    main()
