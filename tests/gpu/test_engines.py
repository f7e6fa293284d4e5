"""Building engines, by the real signatures of TensorRT 10 and 11."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ee_export.errors import DeviceError
from ee_export.package.manifest import TensorSpec
from ee_export.package.recipe import Profile, Range, TargetRecipe
from ee_export.runtime.gpu.provenance import EngineProvenance
from ee_export.runtime.gpu.shapes import profile_shapes
from tests.gpu.tensorrt_fake import SPEC, VISUAL, FakeTensorRt, fakes

RECIPE = TargetRecipe("mine", "tensorrt", "fp16", workspace_mib=512, builder_level=4)
ONE, MANY = Range(1, 1, 1), Range(2, 8, 16)
SHAPES = profile_shapes(SPEC.inputs, [Profile(ONE, Range(1, 128, 512)), Profile(MANY, Range(1, 128, 512))], VISUAL)


@pytest.fixture(params=["tensorrt-11", pytest.param("tensorrt-10", marks=pytest.mark.exhaustive)])
def tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRt]:
    yield from fakes(request.param, monkeypatch)


def build(tensorrt: FakeTensorRt, recipe: TargetRecipe = RECIPE, cache: Path | None = None) -> bytes:
    request = tensorrt.engines.EngineRequest(Path("/work/encoder.1.onnx"), SPEC.inputs, SHAPES, recipe, cache)
    built: bytes = tensorrt.engines.build_engine(request)
    return built


def flags(tensorrt: FakeTensorRt) -> set[Any]:
    return {call["flag"] for call in tensorrt.arguments("IBuilderConfig.set_flag")}


def test_an_engine_is_built_of_a_strongly_typed_graph_in_this_order(tensorrt: FakeTensorRt) -> None:
    assert build(tensorrt) == b"plan"
    steps = [name for name in tensorrt.names if not name.startswith(("~", "ILogger"))]
    assert steps == [
        "Builder.__init__",
        "Builder.create_network",
        "OnnxParser.__init__",
        "OnnxParser.parse_from_file",
        "Builder.create_builder_config",
        "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.builder_optimization_level=",
        "IBuilderConfig.max_aux_streams=",
        "IBuilderConfig.hardware_compatibility_level=",
        "IBuilderConfig.clear_flag",
        *2
        * [
            "Builder.create_optimization_profile",
            *["IOptimizationProfile.set_shape"] * 2,
            "IBuilderConfig.add_optimization_profile",
        ],
        "Builder.build_serialized_network",
    ]
    typed = 1 << int(tensorrt.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert tensorrt.arguments("Builder.create_network") == [{"flags": typed}]
    assert tensorrt.arguments("OnnxParser.parse_from_file") == [{"model": "/work/encoder.1.onnx"}]
    workspace = tensorrt.trt.MemoryPoolType.WORKSPACE
    assert tensorrt.arguments("IBuilderConfig.set_memory_pool_limit") == [{"pool": workspace, "pool_size": 512 << 20}]
    assert tensorrt.arguments("IBuilderConfig.max_aux_streams=") == [{"value": 0}]
    assert tensorrt.arguments("IBuilderConfig.builder_optimization_level=") == [{"value": 4}]
    assert [call["flag"].name for call in tensorrt.arguments("IBuilderConfig.clear_flag")] == ["TF32"]
    assert flags(tensorrt) == set()
    assert tensorrt.arguments("IOptimizationProfile.set_shape")[2] == {
        "input": "text",
        "min": (2, 1, 8),
        "opt": (8, 128, 8),
        "max": (16, 512, 8),
    }


def test_all_that_a_build_made_dies_in_the_reverse_of_the_order_it_was_made_in(tensorrt: FakeTensorRt) -> None:
    build(tensorrt)
    assert [name for name in tensorrt.deaths() if "Profile" not in name] == [
        "~IBuilderConfig",
        "~OnnxParser",
        "~INetworkDefinition",
        "~Builder",
    ]


def test_the_logger_outlives_every_builder(tensorrt: FakeTensorRt) -> None:
    build(tensorrt)
    build(tensorrt)
    assert tensorrt.names.count("ILogger.__init__") == 1
    assert "~ILogger" not in tensorrt.deaths()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version_compatible": True}, {"VERSION_COMPATIBLE"}),
        ({"weight_streaming": True, "cuda_graphs": False}, {"WEIGHT_STREAMING"}),
        ({"strip": True, "refit": "identical"}, {"STRIP_PLAN", "REFIT_IDENTICAL"}),
        ({"refit": "any"}, {"REFIT"}),
    ],
)
def test_a_recipe_s_wishes_become_the_builder_s_flags(
    tensorrt: FakeTensorRt, changes: dict[str, Any], expected: set[str]
) -> None:
    build(tensorrt, replace(RECIPE, **changes))
    assert flags(tensorrt) == {getattr(tensorrt.trt.BuilderFlag, name) for name in expected}


@pytest.mark.parametrize("level", ["none", "ampere_plus", "same_compute_capability"])
def test_hardware_compatibility_becomes_the_builder_s_level(tensorrt: FakeTensorRt, level: Any) -> None:
    build(tensorrt, replace(RECIPE, hardware_compatibility=level))
    (arguments,) = tensorrt.arguments("IBuilderConfig.hardware_compatibility_level=")
    assert arguments["value"].name == level.upper()


def test_no_workspace_limit_is_none_at_all(tensorrt: FakeTensorRt) -> None:
    build(tensorrt, replace(RECIPE, workspace_mib=0))
    assert "IBuilderConfig.set_memory_pool_limit" not in tensorrt.names


def test_a_refusal_of_the_parser_names_the_node_and_its_operator(tensorrt: FakeTensorRt) -> None:
    tensorrt.fake.on("OnnxParser.parse_from_file", lambda parser, path: False)
    tensorrt.refuses("attention_3", "Attention", "Assertion failed: two outputs", errors=2)
    with pytest.raises(
        DeviceError,
        match=r"encoder\.1\.onnx: TensorRT 1\d\..* cannot parse it: node 'attention_3' \(Attention\): Assertion",
    ):
        build(tensorrt)
    assert "Builder.build_serialized_network" not in tensorrt.names
    assert tensorrt.deaths()[-2:] == ["~INetworkDefinition", "~Builder"]


def test_an_unreadable_file_is_reported_with_the_parsers_log(tensorrt: FakeTensorRt) -> None:
    def refuse(parser: Any, path: str) -> bool:
        tensorrt.complain("Failed to open file: /work/encoder.1.onnx")
        return False

    tensorrt.fake.on("OnnxParser.parse_from_file", refuse)
    with pytest.raises(DeviceError, match="cannot parse it: Failed to open file"):
        build(tensorrt)


def test_a_refusal_of_the_builder_has_its_last_log_lines_and_no_earlier_ones(
    tensorrt: FakeTensorRt,
) -> None:
    def refuse(builder: Any, network: Any, config: Any) -> None:
        tensorrt.complain(
            "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[a...b]})"
        )

    tensorrt.complain("an old error of another segment")
    tensorrt.fake.on("Builder.build_serialized_network", refuse)
    with pytest.raises(DeviceError, match=r"built no engine of it: Error Code 10.*ForeignNode") as refused:
        build(tensorrt)
    assert "old error" not in str(refused.value)


def test_too_little_memory_during_a_build_is_reported_with_tensorrts_message(tensorrt: FakeTensorRt) -> None:
    def refuse(builder: Any, network: Any, config: Any) -> None:
        tensorrt.complain("Requested amount of GPU memory (8589934592 bytes) could not be allocated.")

    tensorrt.fake.on("Builder.build_serialized_network", refuse)
    with pytest.raises(DeviceError, match=r"Requested amount of GPU memory \(8589934592 bytes\)"):
        build(tensorrt)


def test_a_missing_builder_is_reported_with_the_last_log_line(tensorrt: FakeTensorRt) -> None:
    def refuse(builder: Any, logger: Any) -> None:
        tensorrt.complain("CUDA initialization failure with error: 100. Please check your CUDA installation")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    tensorrt.fake.on("Builder.__init__", refuse)
    with pytest.raises(DeviceError, match="made no builder: CUDA initialization failure with error: 100"):
        build(tensorrt)


def test_a_profile_that_is_refused_is_named(tensorrt: FakeTensorRt) -> None:
    tensorrt.fake.on("IBuilderConfig.add_optimization_profile", lambda config, profile: -1)
    with pytest.raises(DeviceError, match=r"refused the profile .*'text': \(\(1, 1, 8\)"):
        build(tensorrt)


def test_a_timing_cache_is_created_read_and_merged_with_that_of_others(tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "one.timing"
    build(tensorrt, cache=cache)
    assert cache.read_bytes() == b"measured"
    assert tensorrt.arguments("IBuilderConfig.create_timing_cache") == [{"serialized_timing_cache": b""}]

    def others_write(builder: Any, network: Any, config: Any) -> bytes:
        cache.write_bytes(b"of others")
        return b"plan"

    tensorrt.fake.on("Builder.build_serialized_network", others_write)
    build(tensorrt, cache=cache)
    given = [call["serialized_timing_cache"] for call in tensorrt.arguments("IBuilderConfig.create_timing_cache")]
    assert given == [b"", b"measured", b"of others"]
    assert tensorrt.names.count("ITimingCache.combine") == 1
    assert [path.name for path in cache.parent.iterdir()] == ["one.timing"]


@pytest.mark.parametrize("why", ["damaged", "of another GPU"])
def test_an_unusable_timing_cache_is_replaced(tensorrt: FakeTensorRt, tmp_path: Path, why: str) -> None:
    cache = tmp_path / "one.timing"
    cache.write_bytes(b"junk")
    made: list[bytes] = []

    def create(config: Any, data: bytes) -> Any:
        made.append(data)
        return None if why == "damaged" and data == b"junk" else tensorrt.fake.new("ITimingCache")

    tensorrt.fake.on("IBuilderConfig.create_timing_cache", create)
    tensorrt.fake.on("IBuilderConfig.set_timing_cache", lambda config, cache, mismatch: made[-1] == b"")
    assert build(tensorrt, cache=cache) == b"plan"
    assert made[:2] == [b"junk", b""]
    assert cache.read_bytes() == b"measured"


def test_caches_of_two_gpus_or_versions_are_two_files(tensorrt: FakeTensorRt) -> None:
    one = EngineProvenance(tensorrt.trt.__version__, "NVIDIA H100 80GB HBM3", "9.0", "580.65")
    names = {
        tensorrt.engines.cache_name(each)
        for each in (one, replace(one, gpu="NVIDIA A10/x"), replace(one, tensorrt="10.0.0.1"))
    }
    assert len(names) == 3
    assert not any("/" in name or " " in name for name in names)


def test_equal_profiles_of_a_segment_without_text_are_merged() -> None:
    pixels = [TensorSpec("pixel_values", "float32", ("B", 3, 4, 4))]
    texts = [Profile(ONE, Range(1, 64, 128)), Profile(ONE, Range(129, 256, 512)), Profile(MANY, Range(1, 64, 128))]
    assert [shapes["pixel_values"][2][0] for shapes in profile_shapes(pixels, texts, VISUAL)] == [1, 16]
    assert [shapes["text"][0] for shapes in profile_shapes(SPEC.inputs, texts, VISUAL)] == [
        (1, 1, 8),
        (1, 129, 8),
        (2, 1, 8),
    ]


def test_state_of_text_and_visual_tokens_has_as_many_more() -> None:
    hidden = [SPEC.outputs[1]]
    (shapes,) = profile_shapes(hidden, [Profile(ONE, Range(1, 128, 512))], 197)
    assert shapes["hidden.0"] == ((1, 198, 8), (1, 325, 8), (1, 709, 8))
