"""The command line: ``patchconv`` and ``patchconv-rewrite``."""
