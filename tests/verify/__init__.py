"""Tests of `patchconv_deploy.verify`."""
