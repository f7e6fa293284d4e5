"""Engines that were built for other machines are refused."""

from dataclasses import replace

import pytest

from ee_export.errors import BadPackage, BadRequest
from ee_export.runtime.gpu.provenance import EngineProvenance, require_compatible

H100 = EngineProvenance("10.16.1.11", "NVIDIA H100 80GB HBM3", "9.0", "580.65")
A10 = EngineProvenance("11.4.0.106", "NVIDIA A10", "8.6", "575.51")


def test_another_tensorrt_and_another_gpu_are_named_with_the_command_that_rebuilds() -> None:
    with pytest.raises(BadRequest) as refused:
        require_compatible(H100, A10, "documents.ee", "tensorrt-fp16")
    assert str(refused.value) == (
        "documents.ee: engines of tensorrt-fp16 were built by TensorRT 10.16.1.11 on NVIDIA H100 80GB HBM3 (compute capability "
        "9.0, driver 580.65); here is TensorRT 11.4.0.106 on NVIDIA A10 (compute capability 8.6, driver 575.51): another TensorRT, "
        "another compute capability; build them here: `ee-export compile documents.ee DATA --target tensorrt-fp16 --force`"
    )


def test_another_driver_is_no_reason_to_rebuild() -> None:
    assert H100.incompatibilities(replace(H100, driver="999.99")) == []


@pytest.mark.parametrize(
    ("hardware", "here", "runs"),
    [
        ("none", {"gpu": "NVIDIA H100 PCIe"}, False),
        ("none", {"gpu": "NVIDIA A10", "compute_capability": "8.6"}, False),
        ("same_compute_capability", {"gpu": "NVIDIA H100 PCIe"}, True),
        ("same_compute_capability", {"compute_capability": "8.6"}, False),
        ("ampere_plus", {"gpu": "NVIDIA A10", "compute_capability": "8.6"}, True),
        ("ampere_plus", {"gpu": "NVIDIA B200", "compute_capability": "10.0"}, True),
        ("ampere_plus", {"gpu": "Tesla T4", "compute_capability": "7.5"}, False),
    ],
)
def test_hardware_compatible_engines_run_on_as_many_gpus_as_they_were_built_for(
    hardware: str, here: dict[str, str], runs: bool
) -> None:
    built = replace(H100, hardware=hardware)
    assert (built.incompatibilities(replace(H100, **here)) == []) is runs


@pytest.mark.parametrize(
    ("versions", "here", "runs"),
    [
        ("same", "10.16.1.11", True),
        ("same", "10.16.1.12", False),
        ("newer", "10.17.0.1", True),
        ("newer", "10.9.0.34", False),
        ("newer", "11.4.0.106", False),
    ],
)
def test_version_compatible_engines_run_on_newer_versions_of_the_same_major(
    versions: str, here: str, runs: bool
) -> None:
    built = replace(H100, versions=versions)
    assert (built.incompatibilities(replace(H100, tensorrt=here)) == []) is runs


def test_provenance_is_read_as_it_was_written_and_a_missing_field_is_named() -> None:
    texts = {"from": "cpu-fp32", **H100.texts()}
    assert EngineProvenance.read(texts, "manifest.json: targets.tensorrt-fp16") == H100
    del texts["gpu"]
    with pytest.raises(BadPackage, match=r"targets\.tensorrt-fp16: compiled\.gpu: missing"):
        EngineProvenance.read(texts, "manifest.json: targets.tensorrt-fp16")
