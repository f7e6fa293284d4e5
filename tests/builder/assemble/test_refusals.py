"""`ee-export assemble` refuses unsuitable graphs and recipes in one line, and writes nothing."""

from pathlib import Path

import onnx
import pytest

from ee_export.errors import BadGraph, EeError
from tests.builder.assemble.bad_graphs import BAD_GRAPHS
from tests.builder.assemble.bad_recipes import BAD_RECIPES
from tests.builder.assemble.graphs import ENCODING, WHOLE, made, net


@pytest.mark.parametrize("fault", BAD_GRAPHS)
def test_a_graph_that_no_package_can_hold_is_refused_in_one_line(folder: Path, fault: str) -> None:
    model, words = BAD_GRAPHS[fault]
    onnx.save(model(), folder / "net.onnx")
    _require_refused(folder, WHOLE + ENCODING, words)


@pytest.mark.parametrize("fault", BAD_RECIPES)
def test_a_recipe_that_cannot_be_carried_out_is_refused_in_one_line(folder: Path, fault: str) -> None:
    _require_refused(folder, *BAD_RECIPES[fault])


def _require_refused(folder: Path, toml: str, words: str) -> None:
    before = {path.name for path in folder.iterdir()} | {"segments.toml"}
    lines: list[str] = []
    with pytest.raises(EeError) as caught:
        made(folder, toml, lines.append)
    assert not lines, "a note is printed before the checks are done"
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message and len(message) < 700
    assert {path.name for path in folder.iterdir()} == before


def test_a_graph_is_refused_if_padding_changes_its_answer(text_folder: Path) -> None:
    model = onnx.load(text_folder / "net.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Mul")
    node.op_type = "Identity"
    del node.input[1]
    onnx.save(model, text_folder / "net.onnx")
    _require_refused(
        text_folder, (text_folder / "text.toml").read_text(), "padding behind a text changes its logits by"
    )


@pytest.mark.parametrize(
    "change", [("max_text_tokens = 24", "max_text_tokens = 99999999"), ("bos_id = ", "bos_id = 999")]
)
def test_an_encoding_of_text_that_the_graph_cannot_read_is_refused(text_folder: Path, change: tuple[str, str]) -> None:
    _require_refused(text_folder, (text_folder / "text.toml").read_text().replace(*change), "expected a number in")


@pytest.mark.parametrize("damage", [b"", b"not a graph", b"\x08\x08"])
def test_a_file_that_is_no_graph_is_refused(folder: Path, damage: bytes) -> None:
    (folder / "net.onnx").write_bytes(damage)
    with pytest.raises(BadGraph, match=r"net\.onnx: (not|cannot)"):
        made(folder, WHOLE + ENCODING)


@pytest.mark.parametrize("place", ["../outside.bin", "link.bin", "missing.bin"])
def test_weights_outside_the_folder_are_refused(folder: Path, place: str) -> None:
    inside = folder / "inside"
    inside.mkdir()
    onnx.save(net(), inside / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(inside / "net.onnx", load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = place
    onnx.save(model, inside / "net.onnx")
    (inside / "weights.bin").rename(folder / "outside.bin")
    (inside / "link.bin").symlink_to(folder / "outside.bin")
    with pytest.raises(BadGraph, match="weights"):
        made(folder, WHOLE.replace("net.onnx", "inside/net.onnx") + ENCODING)
