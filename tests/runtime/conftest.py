"""Shared parts of the runtime's tests: a chain of the tiny package, and thresholds for it."""

import pytest

import ee_export
from ee_export.package.manifest import OperatingPoint
from ee_export.package.store import Package
from ee_export.runtime.chain import Chain


@pytest.fixture(scope="module")
def chain(tiny_package: Package) -> Chain:
    return ee_export.load(tiny_package.path)


def leaving(chain: Chain, **thresholds: float) -> Chain:
    """The chain with thresholds at some exits and none at the others."""
    names = {name.replace("_", "."): value for name, value in thresholds.items()}
    return chain.with_point(OperatingPoint("max_probability", {name: names.get(name) for name in chain.exits[:-1]}))
