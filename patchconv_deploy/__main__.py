"""``python -m patchconv_deploy``: the same as ``patchconv``."""

from patchconv_deploy.cli.main import main

main()
