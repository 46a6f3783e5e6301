"""Tests of `patchconv_deploy.triton`."""
