"""Our code uses only names that the real TensorRT, CUDA and pycuda bindings have, in their oldest and newest version."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import bindings, surfaces

EXAMPLE = Path(__file__).with_name("examples") / "engine.py"

HEADER = """\
import pycuda.autoprimaryctx
import pycuda.driver as cuda
import tensorrt as trt
from cuda.bindings import driver, nvrtc

TENSORRT_10 = trt.__version__.startswith("10.")


def uses(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, engine: trt.ICudaEngine, context: trt.IExecutionContext,
    params: driver.CUgraphNodeParams, graph: driver.CUgraph, stream: cuda.Stream, event: cuda.Event, untyped,
) -> None:
"""

# The error, the line, the name in the message, and the number of the two runs that report it.
MISUSES: list[tuple[str, str, str, int]] = [
    ("class, TensorRT", "trt.Bilder", "Bilder", 2),
    ("class, CUDA", "driver.CUgraphNodeParameters()", "CUgraphNodeParameters", 2),
    ("class, pycuda", "cuda.Streams()", "Streams", 2),
    ("constructor that there is none of, TensorRT", "trt.IBuilderConfig()", "IBuilderConfig", 2),
    ("constructor that there is none of, pycuda", "cuda.DeviceAllocation()", "DeviceAllocation", 2),
    ("method, TensorRT", "builder.build_engine(network, config)", "build_engine", 2),
    ("method of a result, TensorRT", "context.execute_async_v2(0)", "execute_async_v2", 2),
    ("function, CUDA", "driver.cuGraphAddConditionalNode(graph)", "cuGraphAddConditionalNode", 2),
    ("method of a result, CUDA", "driver.cuGraphCreate(0)[1].get_ptr()", "get_ptr", 2),
    ("function, nvrtc", "nvrtc.nvrtcGetCubin(0, b'')", "nvrtcGetCubin", 2),
    ("method, pycuda", "stream.wait()", "wait", 2),
    ("function, pycuda", "cuda.mem_allocate(4)", "mem_allocate", 2),
    ("module, pycuda", "import pycuda.autoprimary", "pycuda.autoprimary", 2),
    ("member of a module, pycuda", "pycuda.autoprimaryctx.ctx", "ctx", 2),
    ("keyword, TensorRT", "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size=1)", "size", 2),
    ("keyword, CUDA", "driver.cuStreamBeginCapture(0, capture_mode=0)", "capture_mode", 2),
    ("keyword, pycuda", "cuda.memcpy_htod_async(0, b'', queue=stream)", "queue", 2),
    ("keyword for an unnamed parameter, pycuda", "cuda.mem_alloc(bytes=4)", "bytes", 2),
    ("too many arguments, TensorRT", "builder.create_builder_config(1)", "create_builder_config", 2),
    ("too many arguments, CUDA", "driver.cuGraphLaunch(0, 0, 0)", "cuGraphLaunch", 2),
    ("too many arguments, pycuda", "event.record(stream, 1)", "record", 2),
    ("too few arguments, TensorRT", "engine.get_tensor_mode()", "get_tensor_mode", 2),
    ("enum member, TensorRT", "trt.MemoryPoolType.WORKSPAC", "WORKSPAC", 2),
    ("enum member, CUDA", "driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_ELSE", "CU_GRAPH_COND_TYPE_ELSE", 2),
    ("flag, pycuda", "cuda.ctx_flags.SCHED_SLEEP", "SCHED_SLEEP", 2),
    ("enum of another kind, TensorRT", "config.set_flag(trt.MemoryPoolType.WORKSPACE)", "set_flag", 2),
    ("property, TensorRT", "engine.num_bindings", "num_bindings", 2),
    ("property that can only be read, TensorRT", "engine.num_io_tensors = 2", "num_io_tensors", 2),
    ("property set to another type, TensorRT", "config.max_aux_streams = 'none'", "SupportsInt", 2),
    ("field, CUDA", "params.conditional.kind", "kind", 2),
    ("field that can only be read, CUDA", "params.conditional.phGraph_out = []", "phGraph_out", 2),
    ("property, pycuda", "stream.pointer", "pointer", 2),
    ("result of another shape, CUDA", "error = driver.cuGraphCreate(0).graph", "graph", 2),
    ("only in 10, TensorRT", "trt.BuilderFlag.FP16", "FP16", 1),
    ("wrong in the branch of one version", "if TENSORRT_10: trt.BuilderFlag.NOT_THERE", "NOT_THERE", 1),
    ("only in 12, CUDA", "driver.cuGraphAddNode(graph, None, 0, params)", "cuGraphAddNode", 1),
    ("only in 13, CUDA", "driver.cuGraphAddNode(graph, None, None, 0, params)", "cuGraphAddNode", 1),
    ("in a branch that mypy takes for unreachable", "if network is None: builder.reset()", "reset", 1),
    ("None unforeseen, TensorRT", "engine.create_execution_context().infer_shapes()", "None", 2),
    ("name in a string, TensorRT", "getattr(trt.BuilderFlag, 'FP17', None)", "FP17", 2),
    ("wrong member of an untyped value", "text = f'é… {untyped.bild()}'", "untyped.bild", 2),
    (
        "member of an untyped value",
        "untyped.build_serialized_network(network, config)",
        "untyped.build_serialized_network",
        2,
    ),
    ("member hidden from the check", "engine.num_bindings  # type: ignore[attr-defined]", "type: ignore", 2),
    (
        "signature of an override",
        "class Log2(trt.ILogger):\n        def log(self, severity: int) -> None: ...",
        "log",
        2,
    ),
    ("unknown method of an interface", "class Log3(trt.ILogger):\n        def write(self) -> None: ...", "write", 2),
]


@pytest.fixture(scope="module")
def misused(tmp_path_factory: pytest.TempPathFactory) -> tuple[surfaces.Report, Path, dict[str, int]]:
    """All misuses in one file, checked at once, and the line that each begins at."""
    file = tmp_path_factory.mktemp("misuse") / "misuse.py"
    text, lines = HEADER, {}
    for kind, code, _, _ in MISUSES:
        lines[kind] = text.count("\n") + 1
        text += f"    {code}\n"
    file.write_text(text)
    return surfaces.check([file]), file, lines


@pytest.fixture(params=bindings.SURFACES)
def surface(request: pytest.FixtureRequest) -> dict[str, Any]:
    try:
        return bindings.surface(request.param)
    except bindings.Missing as error:
        pytest.skip(f"{request.param}: {error}")


def skip_without(report: surfaces.Report, package: str) -> None:
    for binding, why in report.missing.items():
        if binding.startswith(package):
            pytest.skip(f"{binding}: {why}")


@pytest.mark.parametrize("kind, code, name, runs", MISUSES, ids=[kind for kind, *_ in MISUSES])
def test_a_misuse_is_reported_with_its_file_line_and_name(
    misused: tuple[surfaces.Report, Path, dict[str, int]], kind: str, code: str, name: str, runs: int
) -> None:
    report, file, lines = misused
    package = "pycuda" if "pycuda" in kind else "cuda" if "CUDA" in kind or "nvrtc" in kind else "tensorrt"
    skip_without(report, package)
    span = range(lines[kind], lines[kind] + 1 + code.count("\n"))
    findings = [finding for finding in report.findings if finding.line in span]
    assert {finding.file for finding in findings} == {str(file)}
    assert len({finding.run for finding in findings if name in finding.text}) == runs, findings


def test_correct_use_is_accepted_and_counted_by_name() -> None:
    report = surfaces.check([EXAMPLE])
    skip_without(report, "")
    assert report.findings == []
    assert {binding: len(names) for binding, names in report.names.items()} == {
        "tensorrt-10": 60,
        "tensorrt-11": 59,  # no platform_has_fast_fp16
        "cuda-12": 23,
        "cuda-13": 23,
        "pycuda": 12,
    }
    assert "tensorrt.IBuilderConfig.set_memory_pool_limit(pool_size=)" in report.names["tensorrt-11"]
    assert "cuda.bindings.driver.CUDA_CONDITIONAL_NODE_PARAMS.handle" in report.names["cuda-13"]
    print(surfaces.table(report))


def test_every_name_that_we_use_exists() -> None:
    report = surfaces.check(surfaces.users())
    print(surfaces.table(report))
    assert not report.findings, "\n".join(map(str, report.findings))
    for binding, why in report.missing.items():
        pytest.skip(f"{binding}: {why}")


def test_every_module_that_imports_a_binding_is_checked(tmp_path: Path) -> None:
    for name, code in {
        "above": "import tensorrt as trt",
        "within": "def f():\n    from cuda.bindings import driver",
        "by_name": "import importlib\nimportlib.import_module('pycuda.driver')",
        "other": "import numpy\nfrom .tensorrt import x\nname = 'tensorrt'",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    assert [path.stem for path in surfaces.users(tmp_path)] == ["above", "by_name", "within"]


def test_a_misuse_is_reported_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "near.py").write_text("import tensorrt as trt\n\ntrt.Bilder\n")
    for folder in (tmp_path, tmp_path.parent, Path("/")):
        monkeypatch.chdir(folder)
        report = surfaces.check([tmp_path / "near.py"])
        skip_without(report, "tensorrt")
        assert [(finding.line, finding.run) for finding in report.findings] == [(3, "new"), (3, "old")]
        assert not any(report.names.values())


def test_the_check_cannot_be_turned_off_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "off.py"
    file.write_text("# mypy: ignore-errors\nimport tensorrt as trt\n\ntrt.Bilder\n")
    assert {finding.line for finding in surfaces.check([file]).findings} == {1}


def test_a_module_imported_by_a_string_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "dynamic.py"
    file.write_text("import importlib\n\ntrt = importlib.import_module('tensorrt')\n")
    assert ["importlib.import_module" in finding.text for finding in surfaces.check([file]).findings] == [True, True]


def test_a_surface_names_no_type_that_it_does_not_have(surface: dict[str, Any]) -> None:
    """mypy takes an unknown name in a stub for a value of any type, and would check nothing there."""
    for members in surface["modules"].values():
        for kind in kinds(members):
            words = set(re.findall(r"(?<![\w.])\w+", kind)) - {"Any", "None", "builtins", "typing", "collections"}
            assert words <= members.keys() | {"typing_extensions", "pycuda"}, kind


def kinds(members: dict[str, Any]) -> Iterator[str]:
    for member in members.values():
        yield from (member[key] for key in ("type", "accepts") if key in member)
        for signature in member.get("signatures", []):
            yield from (parameter["type"] for parameter in signature["parameters"])
            yield signature["returns"]
        yield from kinds(member.get("members", {}))


def test_few_types_are_unknown(surface: dict[str, Any]) -> None:
    names = [kind for members in surface["modules"].values() for kind in kinds(members)]
    unknown = sum(kind == "Any" for kind in names) / len(names)
    assert unknown < (0.45 if "pycuda.driver" in surface["modules"] else 0.1)  # Boost.Python often states `object`
