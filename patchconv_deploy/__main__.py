"""``python -m patchconv_deploy``: the same as ``patchconv``."""

from patchconv_deploy.cli import main

main()
