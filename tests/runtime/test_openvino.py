"""Errors of OpenVINO targets if OpenVINO is missing or does not support the processor. Nothing is loaded before them."""

import pytest

from ee_export.errors import BadRequest
from ee_export.runtime import openvino
from ee_export.runtime.backends import require_runnable


def test_without_openvino_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    with pytest.raises(BadRequest, match=r"pip install 'ee_export\[openvino\]'"):
        require_runnable("openvino")


def test_a_processor_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]'")
    monkeypatch.setattr(installed.Core, "get_property", lambda self, device, name: ["FP32", "INT8"])
    with pytest.raises(BadRequest, match=r"no bfloat16.*cpu-fp32 or cpu-int8"):
        require_runnable("openvino")
