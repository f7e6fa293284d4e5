"""A package of graphs lives on as every other: it is calibrated, tuned, compiled, compared and shown."""

import json
import shutil
from pathlib import Path

import onnx
import pytest

from ee_export.package.store import Package, open_package
from tests.builder.assemble.graphs import (
    ARRAYS,
    CASCADE,
    CUT,
    ENCODING,
    SIDE,
    WHOLE,
    flat_net,
    head_of,
    made,
    net,
    save_rows,
)
from tests.conftest import Call

HEAD = '[[cut]]\nexit = "middle"\ntensor = "late"\nhead = "head.onnx"\n'
RECIPES = {
    "cut": WHOLE + CUT + HEAD + ENCODING,
    "arrays": ARRAYS + CUT.replace("relu1", "flat"),
    "cascade": CASCADE,
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, pages: Path) -> dict[str, Package]:
    """A whole graph that is cut, a graph of arrays that is cut, and a cascade of two graphs."""
    packages = {}
    for name, recipe in RECIPES.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "pages").symlink_to(pages)
        onnx.save(net(), folder / "net.onnx")
        onnx.save(head_of(), folder / "head.onnx")
        onnx.save(flat_net(5, seed=3), folder / "rows.onnx")
        onnx.save(flat_net(3, 8, 8, seed=1), folder / "small.onnx")
        onnx.save(flat_net(3, SIDE, SIDE, seed=2), folder / "large.onnx")
        save_rows(folder / "rows.npz")
        packages[name] = made(folder, recipe)
    return packages


@pytest.mark.parametrize("name", RECIPES)
def test_a_package_of_graphs_is_calibrated_tuned_compiled_and_compared(
    name: str, packages: dict[str, Package], tmp_path: Path, call: Call
) -> None:
    package = packages[name]
    data = package.path.parent / ("rows.npz" if name == "arrays" else "pages")
    copy = Path(shutil.copytree(package.path, tmp_path / "copy.ee"))

    status, _, err = call("calibrate", copy, data, "--method", "vector", "--operating-point", "vector")
    assert status == 0, err
    status, _, err = call("tune", copy, data, "--max-cost-ms", "100", "--operating-point", "cheap")
    assert status == 0, err
    status, out, err = call("tune", copy, data, "--frontier", "--json")
    assert status == 0, err
    assert json.loads(out)
    status, _, err = call("compile", copy, data, "--target", "cpu-int8")
    assert status == 0, err
    tuned = open_package(copy)
    assert {"vector", "cheap"} <= tuned.target("cpu-fp32").operating_points.keys()
    assert tuned.target("cpu-int8").operating_points.keys() >= {"default", "full"}

    for target in ("cpu-fp32", "cpu-int8"):
        status, out, err = call("verify", copy, "--target", target)
        assert status == 0, err
        status, out, err = call("inspect", copy, "--target", target)
        assert status == 0, err
        assert "differs from the graphs" in out and "torch" not in out
    status, out, err = call("diff", package.path, copy)
    assert status == 1, err
    assert "cpu-int8" in out
    status, _, err = call("diff", package.path, package.path)
    assert status == 0, err
    status, out, err = call("diff", package.path, copy, data)
    if name == "arrays":
        assert status == 2
        assert len(err.splitlines()) == 1 and err.strip().endswith("leave PAGES out")
    else:
        assert status == 2
        assert f"{copy}: unknown operating point 'default': target 'cpu-fp32' has cheap, full, vector; name one" in err
        status, out, err = call("diff", package.path, copy, data, "--operating-point", "full")
        assert status == 1, err
        assert "only A right" in out
