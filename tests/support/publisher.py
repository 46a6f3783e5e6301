"""Publishes again and again, one process each, for the test that kills them.

``python publisher.py REPOSITORY MODEL...``: for every line on standard input a child is forked that
publishes the next model; its id is printed before it begins.
"""

from __future__ import annotations

import os
import sys
from itertools import cycle
from pathlib import Path

from patchconv_deploy.triton.publish import stage_version


def publish(repository: Path, model: Path) -> None:
    """Publish a file, with a configuration that names it, in several writes."""
    data = model.read_bytes()
    with stage_version(repository, "m") as staged:
        with (staged.folder / "model.onnx").open("wb") as stream:
            for at in range(0, len(data), 1 << 16):
                stream.write(data[at : at + (1 << 16)])
                stream.flush()
        config = staged.model / "config.pbtxt"
        config.unlink(missing_ok=True)
        config.write_text(f"# {staged.version} {model.name}\n")
        staged.publish()


def say(text: str) -> None:
    """Answer with a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Fork a publisher per line."""
    repository, *models = map(Path, sys.argv[1:])
    following = cycle(models)
    for _ in sys.stdin:
        model = next(following)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            publish(repository, model)
            os._exit(0)
        say(str(child))
        os.write(write, b"x")
        os.close(read)
        os.close(write)
        os.waitpid(child, 0)
        say("ended")


if __name__ == "__main__":
    main()
