"""A pytest plugin: predict for a processor without AVX-512, whatever this one is.

ONNX Runtime lays 8 channels out together there, and 16 on others (`rewriters.memory.processor`), so
that toy networks get other plans. It is given with `-p tests.support.blocks_of_8`: first of all.
Tests that hold predictions against a runtime fail under it where the processor is another one.
"""

from __future__ import annotations

from functools import cache

from patchconv_deploy.rewriters.memory import processor


def _eight() -> int:
    return 8


def pytest_report_header() -> str:
    """Say in the head of the log what is predicted for."""
    from patchconv_deploy.rewriters.memory.targets import ENGINES

    return f"predictions: channels in blocks of {ENGINES['onnxruntime'].lowering.block}"


processor.channel_block = cache(_eight)
