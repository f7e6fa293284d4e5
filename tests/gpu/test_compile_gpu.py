"""`ee-export compile` for a GPU. Everything but TensorRT itself runs, on a stand-in that computes with onnxruntime."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ee_export.builder import gpu_target
from ee_export.builder.compile import compile_target
from ee_export.cli.main import cli
from ee_export.data.dataset import read_dataset
from ee_export.errors import BadPackage, BadRequest, DeviceError
from ee_export.package.store import Package, open_package
from ee_export.runtime.gpu import open as opening
from ee_export.runtime.load import load_package
from ee_export.verify.replay import verify_package
from tests.gpu.tensorrt_fake import FakeTensorRt, Gpu

TARGET = "tensorrt-fp32"


@pytest.fixture
def made(tensorrt: FakeTensorRt, tiny_package: Package, pages_folder: Path, tmp_path: Path) -> Package:
    """A package with the target, made once for each TensorRT, in a folder of the test's own."""
    before = _MADE.get(tensorrt.trt.__version__)
    path = Path(shutil.copytree(before or tiny_package.path, tmp_path / "made.ee"))
    if before is None:
        compiled(path, pages_folder)
        keep = tmp_path.parent / f"made-{tensorrt.trt.__version__}.ee"
        _MADE[tensorrt.trt.__version__] = Path(shutil.copytree(path, keep))
    return open_package(path)


_MADE: dict[str, Path] = {}


def compiled(package: Path, pages: Path, target: str = TARGET, **options: Any) -> Package:
    return compile_target(open_package(package), target, pages, progress=lambda *_: None, **options)


def test_a_compiled_target_verifies_and_gives_the_answers_of_its_source(
    tensorrt: FakeTensorRt, package: Path, pages_folder: Path, tmp_path: Path
) -> None:
    result = compiled(package, pages_folder)
    target = result.target(TARGET)
    assert [segment.file for segment in target.segments] == [
        f"{TARGET}/{exit_name}.engine" for exit_name in result.manifest.exits
    ]
    assert max(verify_package(result, TARGET).differences.values()) == 0
    assert max(target.equality.values()) < 1e-4
    floats, chain = load_package(result), load_package(result, TARGET)
    data = read_dataset(pages_folder)
    arrays = floats.encode([data.page(index) for index in range(0, len(data), 13)])
    for name, values in floats.logits(arrays).items():
        assert chain.logits(arrays)[name] == pytest.approx(values, abs=1e-4)
    assert target.costs is not None and target.costs.machine == Gpu().name
    assert {"full", "default"} <= set(target.operating_points)
    assert [file.name for file in (tmp_path / "cache" / "ee_export").iterdir()] == [
        f"tensorrt-{tensorrt.trt.__version__}-NVIDIA-H100-80GB-HBM3-9.0.timing"
    ]


def test_the_manifest_states_the_gpu_and_the_source_of_engines(tensorrt: FakeTensorRt, made: Package) -> None:
    texts = made.target(TARGET).compiled
    assert texts["tensorrt"] == tensorrt.trt.__version__
    assert (texts["gpu"], texts["compute_capability"], texts["driver"]) == ("NVIDIA H100 80GB HBM3", "9.0", "580.65")
    assert texts["from"] == "cpu-fp32" and len(texts["source"]) == len(texts["recipe"]) == 64
    assert "plain_attention" not in texts


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
        ("something else\n", "of CUDA 13.0"),
    ],
)
def test_the_driver_is_named_as_the_system_names_it(
    text: str, driver: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(opening, "DRIVER_FILE", tmp_path / "version")
    assert opening.driver_of(Gpu()) == "of CUDA 13.0"
    (tmp_path / "version").write_text(text)
    assert opening.driver_of(Gpu()) == driver


def test_engines_of_another_gpu_or_tensorrt_are_refused_before_one_is_loaded(
    tensorrt: FakeTensorRt, made: Package
) -> None:
    loaded = tensorrt.names.count("Runtime.deserialize_cuda_engine")
    change(made.path, lambda texts: texts.update(tensorrt="9.3.0.1", gpu="NVIDIA A10", compute_capability="8.6"))
    with pytest.raises(BadRequest) as refused:
        load_package(open_package(made.path), TARGET)
    for part in (
        "built by TensorRT 9.3.0.1 on NVIDIA A10",
        f"here is TensorRT {tensorrt.trt.__version__} on NVIDIA H100",
        f"`ee-export compile {made.path} DATA --target {TARGET} --force`",
    ):
        assert part in str(refused.value)
    assert tensorrt.names.count("Runtime.deserialize_cuda_engine") == loaded


def test_engines_of_other_segments_than_the_package_has_now_are_refused(tensorrt: FakeTensorRt, made: Package) -> None:
    change(made.path, lambda texts: texts.update(source="0" * 64))
    with pytest.raises(
        BadRequest, match=r"compiled from other segments than the package's cpu-fp32; `ee-export compile"
    ):
        load_package(open_package(made.path), TARGET)


def test_a_tampered_engine_is_refused_before_one_is_loaded(tensorrt: FakeTensorRt, made: Package) -> None:
    loaded = tensorrt.names.count("Runtime.deserialize_cuda_engine")
    engine = made.path / made.target(TARGET).segments[-1].file
    data = bytearray(engine.read_bytes())
    data[100] ^= 1
    engine.write_bytes(data)
    with pytest.raises(BadPackage, match=r"final\.engine: sha256 differs"):
        load_package(open_package(made.path), TARGET)
    assert tensorrt.names.count("Runtime.deserialize_cuda_engine") == loaded


def test_a_segment_whose_attention_is_refused_is_built_of_plain_nodes_with_a_warning(
    tensorrt: FakeTensorRt, package: Path, pages_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "operator.toml").write_text(
        'backend = "tensorrt"\nprecision = "fp32"\nattention = "operator"\nstrip = true\nrefit = "identical"\n'
    )
    parse = tensorrt.fake._behaviour["OnnxParser.parse_from_file"]
    refused: list[str] = []

    def refuse_attention(parser: Any, path: str) -> bool:
        if not refused and gpu_target.has_attention(Path(path)):
            refused.append(Path(path).stem)
            return False
        return bool(parse(parser, path))

    tensorrt.fake.on("OnnxParser.parse_from_file", refuse_attention)
    tensorrt.refuses("attention_1", "Attention", "unsupported")
    stages: list[str] = []
    recipe = str(tmp_path / "operator.toml")
    with caplog.at_level("WARNING", "ee_export"):
        result = compile_target(
            open_package(package), recipe, pages_folder, progress=lambda stage, done, total: stages.append(stage)
        )
    assert result.target("operator").compiled["plain_attention"] == refused[0]
    assert f"plain attention: {refused[0]}" in stages
    assert f"{refused[0]}: built with plain attention, for {refused[0]}.onnx: TensorRT" in caplog.text
    assert "node 'attention_1' (Attention): unsupported" in caplog.text
    assert max(verify_package(result, "operator").differences.values()) == 0
    weights = [Path(call["model"]) for call in tensorrt.arguments("OnnxParserRefitter.refit_from_file")]
    assert {path.relative_to(package).as_posix() for path in weights if path.is_relative_to(package)} >= {
        f"operator/plain/{refused[0]}.onnx",
        "operator/vision.onnx",
    }
    assert all(path.exists() for path in weights if path.is_relative_to(package))


def test_a_refusal_of_both_forms_names_the_node_and_does_not_change_the_package(
    tensorrt: FakeTensorRt, package: Path, pages_folder: Path
) -> None:
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    tensorrt.fake.on("OnnxParser.parse_from_file", lambda parser, path: False)
    tensorrt.refuses("conv_7", "Conv", "no such thing")
    with pytest.raises(
        DeviceError, match=r"vision\.onnx: TensorRT .* cannot parse it: node 'conv_7' \(Conv\): no such"
    ):
        compiled(package, pages_folder)
    assert {path: path.read_bytes() for path in package.rglob("*") if path.is_file()} == before
    assert [path.name for path in package.parent.iterdir() if path.name.startswith(".")] == []


def test_pages_beyond_the_profiles_are_refused_with_the_limit(
    tensorrt: FakeTensorRt, made: Package, pages_folder: Path
) -> None:
    chain = load_package(made, TARGET)
    page = chain.encode([read_dataset(pages_folder).page(0)])
    many = {name: np.repeat(array, 200, 0) for name, array in page.items()}
    with pytest.raises(BadRequest, match=rf"no profile of {TARGET} holds 200 pages.*pages: 1 to"):
        chain.logits(many)


def test_a_users_recipe_makes_a_target_with_the_name_of_its_file(
    tensorrt: FakeTensorRt, package: Path, pages_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(
        'backend = "tensorrt"\nprecision = "fp16"\nattention = "plain"\nstrip = true\nrefit = "identical"\ntiming_cache = false\n'
    )
    result = compiled(package, pages_folder, str(tmp_path / "mine.toml"))
    target = result.target("mine")
    assert target.compiled["stripped"] == "yes" and target.compiled["precision"] == "fp16"
    assert (package / "mine" / "recipe.toml").read_text().startswith('backend = "tensorrt"')
    assert all((package / segment.file).with_suffix(".onnx").exists() for segment in target.segments)
    assert "OnnxParserRefitter.refit_from_file" in tensorrt.names
    assert 1e-6 < max(target.equality.values()) < 0.5, "float16 moved the logits, and not far"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tensorrt-fp61", "unknown target to compile for 'tensorrt-fp61': .*did you mean tensorrt-fp16"),
        ("cpu-int88", "did you mean cpu-int8"),
        ("no/such.toml", r"no/such\.toml: cannot read this recipe"),
    ],
)
def test_an_unknown_target_is_refused_with_the_nearest_name(
    package: Path, pages_folder: Path, target: str, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        compiled(package, pages_folder, target)


def test_a_missing_tensorrt_is_reported_at_once_and_nothing_is_written(package: Path, pages_folder: Path) -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("TensorRT is installed here")
    before = sorted(package.parent.rglob("*"))
    done = CliRunner().invoke(cli, ["compile", str(package), str(pages_folder), "--target", "tensorrt-fp16"])
    assert isinstance(done.exception, BadRequest)
    assert "pip install 'ee_export[tensorrt]'" in str(done.exception)
    assert sorted(package.parent.rglob("*")) == before


def test_only_the_typed_graphs_are_written_without_a_gpu(package: Path, pages_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "graphs"
    arguments = [
        "compile",
        str(package),
        str(pages_folder),
        "--target",
        "tensorrt-fp16",
        "--graphs",
        str(out),
        "--json",
    ]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    folder = Path(json.loads(done.stdout)["graphs"])
    for exit_name in open_package(package).manifest.exits:
        onnx.checker.check_model(folder / f"{exit_name}.onnx")
    assert set(open_package(package).manifest.targets) == {"cpu-fp32"}


def change(package: Path, edit: Any) -> None:
    """Change the fields of a target's provenance in a manifest."""
    manifest = json.loads((package / "manifest.json").read_text())
    edit(manifest["targets"][TARGET]["compiled"])
    (package / "manifest.json").write_text(json.dumps(manifest))


KILLED = """
import os, signal, sys
from pathlib import Path
import pytest
from ee_export.builder.compile import compile_target
from ee_export.package.store import open_package
from ee_export.runtime import gpu_targets
from tests.gpu.stand_in import computing
from tests.gpu.tensorrt_fake import Gpu, fakes

with pytest.MonkeyPatch.context() as patch:
    for fake in fakes(sys.argv[3], patch):
        computing(fake)
        patch.setattr("ee_export.builder.compile.open_gpu", lambda index: Gpu())
        patch.setattr(gpu_targets, "open_gpu", lambda index: Gpu())
        build, engines = fake.fake._behaviour["Builder.build_serialized_network"], []

        def killed(builder, network, config):
            engines.append(build(builder, network, config))
            if len(engines) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return engines[-1]

        fake.fake.on("Builder.build_serialized_network", killed)
        compile_target(open_package(Path(sys.argv[1])), "tensorrt-fp32", Path(sys.argv[2]), progress=lambda *_: None)
"""


def test_a_killed_compile_does_not_change_the_package_and_the_next_one_cleans_up(
    tensorrt: FakeTensorRt, package: Path, pages_folder: Path, request: pytest.FixtureRequest
) -> None:
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    version = f"tensorrt-{tensorrt.trt.__version__.split('.')[0]}"
    arguments = [sys.executable, "-c", KILLED, str(package), str(pages_folder), version]
    done = subprocess.run(arguments, cwd=request.config.rootpath, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {path: path.read_bytes() for path in package.rglob("*") if path.is_file()} == before
    left = [path.name for path in package.parent.iterdir() if path.name.startswith(f".{package.name}")]
    assert len(left) == 2, "a staging folder and a lock that nobody holds"
    compiled(package, pages_folder)
    assert [path for path in package.parent.iterdir() if path.name.startswith(f".{package.name}")] == []


def test_two_compiles_of_one_package_run_one_after_the_other_and_lose_nothing(
    tensorrt: FakeTensorRt, package: Path, pages_folder: Path
) -> None:
    with ThreadPoolExecutor(2) as workers:
        first = workers.submit(compiled, package, pages_folder)
        second = workers.submit(compiled, package, pages_folder, "cpu-int8")
        first.result(), second.result()
    assert set(open_package(package).manifest.targets) == {"cpu-fp32", "cpu-int8", TARGET}
