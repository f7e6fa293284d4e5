"""Export the full model with Hugging Face Optimum: the stock LayoutLMv3 of an early-exit checkpoint as one ONNX file.

optimum-onnx needs an older transformers than this project, so it is installed in an environment of its own:

    python -m venv build/optimum
    build/optimum/bin/pip install torch==2.13.0+cpu
    build/optimum/bin/pip install 'optimum-onnx[onnxruntime]==0.1.0' 'transformers>=4.57,<4.58' Pillow
    python benchmarks/optimum_export.py samples/documents.checkpoint build/optimum.onnx --python build/optimum/bin/python
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from safetensors.torch import save_file
from transformers import LayoutLMv3Config

from ee_export.data.encode import Arrays
from ee_export.model import checkpoint
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3
from ee_export.runtime.ort import available_threads, open_session

OWN = frozenset({"exits", "heads", "model_type", "architectures"})
"""Fields of an early-exit configuration that the stock model lacks or defines otherwise."""
PACKAGES = ("optimum-onnx", "optimum", "transformers", "torch")
VERSIONS = f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {PACKAGES}), sep=', ')"


@click.command()
@click.argument("source", metavar="CHECKPOINT", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--python",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The Python of the environment with optimum-onnx.",
)
@click.option("--opset", type=int, help="Opset of the graph.  [default: that of optimum]")
def main(source: Path, out: Path, python: Path, opset: int | None) -> None:
    """Write OUT, and compare it with CHECKPOINT's own logits at several text lengths and with padding."""
    model, tokenizer = checkpoint.load(source)
    if not isinstance(model, EarlyExitLayoutLMv3):
        raise click.BadParameter(f"{source} is of {model.config.model_type}; only LayoutLMv3 is exported here")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        stock, exported = Path(temporary, "stock"), Path(temporary, "exported")
        stock.mkdir()
        write_stock(stock, model)
        tokenizer.save(str(stock / "tokenizer.json"))
        options = ["--task", "text-classification", *([] if opset is None else ["--opset", str(opset)])]
        _run(python, "-m", "optimum.exporters.onnx", "--model", stock, *options, exported, folder=temporary)
        shutil.copyfile(exported / "model.onnx", out)
        versions = _run(python, "-c", VERSIONS, folder=temporary)
    graph = onnx.load(out)
    click.echo(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, opset {graph.opset_import[0].version}, {len(graph.graph.node)} nodes, "
        f"by {versions.strip()}; largest logit difference from eager torch {largest_difference(out, model):.1e}"
    )


def write_stock(folder: Path, model: EarlyExitModel) -> None:
    """Write configuration and weights of a LayoutLMv3 with exits as a stock model without exits."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in OWN}
    LayoutLMv3Config(architectures=["LayoutLMv3ForSequenceClassification"], **config).save_pretrained(folder)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("exits.")}
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def largest_difference(graph: Path, model: EarlyExitModel) -> float:
    """Compare a graph's logits in onnxruntime with transformers' own forward pass on random pages."""
    session = open_session(str(graph), available_threads())
    rng, config = np.random.default_rng(0), model.config
    worst = 0.0
    for pages, tokens in ((1, 2), (1, 64), (1, config.max_text_tokens), (2, 64)):
        inputs = random_pages(rng, config, pages, tokens)
        (logits,) = session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        expected = model.reference_logits(**tensors)["final"].numpy()
        worst = max(worst, float(np.abs(logits - expected).max()))
    return worst


def random_pages(rng: np.random.Generator, config: LayoutLMv3Config, pages: int, tokens: int) -> Arrays:
    """Draw encoded inputs of noise. If there are several pages, the last one is half as long and padded."""
    corners = np.sort(rng.integers(0, 1001, (pages, tokens, 2, 2)), axis=2)
    inputs: Arrays = {
        "input_ids": rng.integers(config.eos_token_id + 1, config.vocab_size, (pages, tokens)),
        "bbox": corners.reshape(pages, tokens, 4),
        "attention_mask": np.ones((pages, tokens), np.int64),
        "pixel_values": rng.standard_normal((pages, 3, config.input_size, config.input_size), np.float32),
    }
    if pages > 1:
        for name, padding in (("input_ids", config.pad_token_id), ("bbox", 0), ("attention_mask", 0)):
            inputs[name][-1, tokens // 2 :] = padding
    return inputs


def _run(python: Path, *arguments: str | Path, folder: str) -> str:
    """Run the Python of the other environment without this checkout and without a hub, and return its output."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    # The path is absolute, but not resolved, because the python of an environment is a link to another one.
    finished = subprocess.run(
        [python.absolute(), *arguments],
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise click.ClickException(f"{python} failed:\n{finished.stderr[-2000:].strip()}")
    return finished.stdout


if __name__ == "__main__":
    main()
