"""Tests of `patchconv_deploy.measure`."""
