"""A training step of `ee-export train` against a plain Hugging Face loop with the same heads, interleaved.

    python -m benchmarks.train_step [--trunk bert] [--hidden 384 --layers 6]

Both sides have the same trunk with random weights, a linear head at every layer, the same drawn pages, AdamW and
gradient clipping. The plain loop is a hand-written one: `AutoModel(output_hidden_states=True)` with the attention that
transformers chooses, a head on each hidden state, and a batch that is gathered from arrays and padded. *step* is a
whole step. On our side it contains the augmentation of pixels, which the plain loop lacks. Both sides use the
deterministic kernels of `ee-export train`. *update* is a step without the making of the batch.

The ratio is the median over pairs of the plain loop's time divided by ours. Above 1, ours is faster.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from draw import draw_folder
from ee_export.bench.machine import environment, watch
from ee_export.data.dataset import read_dataset
from ee_export.data.encode import Encoder
from ee_export.model import checkpoint, epochs
from ee_export.model import train as training
from ee_export.model.device import Machine, find_device
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.exits import HeadSpec
from ee_export.model.families import FAMILIES
from ee_export.model.heads import Ramp
from ee_export.model.page_cache import encode_pages
from ee_export.model.pages import EncodedPages, encoding_digest, make_batch
from ee_export.model.recipe import TrainingRecipe, with_defaults


class Plain(nn.Module):
    """A stock trunk with a head on the first row of every hidden state."""

    def __init__(self, config: Any, labels: int) -> None:
        super().__init__()
        self.trunk = AutoModel.from_config(config)
        spec = HeadSpec(reads="cls")
        self.heads = nn.ModuleList(Ramp(config.hidden_size, labels, spec) for _ in range(config.num_hidden_layers))

    def forward(self, **inputs: Tensor) -> list[Tensor]:
        states = self.trunk(**inputs, output_hidden_states=True).hidden_states[1:]
        return [head(state[:, 0]) for head, state in zip(self.heads, states, strict=True)]


@click.command()
@click.option("--trunk", default="layoutlmv3", show_default=True, help="[layoutlmv3|bert|vit]  Kind of trunk.")
@click.option("--hidden", default=128, show_default=True, help="Hidden size of the trunk.")
@click.option("--layers", default=4, show_default=True, help="Layers of the trunk.")
@click.option("--batch", default=16, show_default=True, help="Pages of a batch.")
@click.option("--pairs", default=15, show_default=True, help="Interleaved pairs of steps.")
@click.option("--device", default="auto", show_default=True, help="[auto|cpu|cuda|mps]  Device that trains.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(trunk: str, hidden: int, layers: int, batch: int, pairs: int, device: str, record: Path | None) -> None:
    """Print the median times of both loops and their ratio."""
    machine = find_device(device)
    training.be_deterministic(Machine(machine))
    watched = watch()
    with tempfile.TemporaryDirectory() as scratch:
        model, pages, recipe = prepare(Path(scratch), trunk, hidden, layers, batch)
        model.to(machine)
        stage = epochs.stages_of(model, recipe, len(pages))[-1]
        optimizer = epochs.optimizer_of(model, stage, recipe)
        settings = epochs.settings_of(model, recipe, pages.targets, machine)
        batches = epochs.Batches(model, pages, stage, recipe)
        stock = {
            name: getattr(model.config, name) for name in AutoConfig.for_model(trunk).to_dict() if name != "model_type"
        }
        plain = Plain(AutoConfig.for_model(trunk, **stock), model.config.num_labels).to(machine).train()
        plain_optimizer = torch.optim.AdamW(
            plain.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )

        def our_batch(step: int) -> Any:
            return batches[step]

        def our_update(step: int, made: Any) -> None:
            epochs.train_step(model, optimizer, stage, recipe, settings, machine, step, made)

        def plain_batch(step: int) -> Any:
            rows = batches.rows(step)
            return make_batch(model, pages, rows, None), pages.targets[rows]

        def plain_update(step: int, made: Any) -> None:
            inputs, targets = made
            feeds = {name: inputs[name].to(machine) for name in model.INPUTS}
            targets = targets.to(machine)
            losses = [
                nn.functional.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
                for logits in plain(**feeds)
            ]
            plain_optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            plain_optimizer.step()

        ours, theirs = (our_batch, our_update), (plain_batch, plain_update)
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
        for pair in range(pairs + 2):  # the first two warm up
            for name, loop in (("ours", ours), ("plain", theirs))[:: 1 if pair % 2 else -1]:
                measured = time_step(loop, pair, machine)
                if pair >= 2:
                    times[name].append(measured)
    result = {
        **asdict(watched.finish()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(machine) if machine.type == "cpu" else torch.cuda.get_device_name(),
        "trunk": trunk,
        "hidden": hidden,
        "layers": layers,
        "batch": batch,
        "pairs": pairs,
        "attention": plain.trunk.config._attn_implementation,
        "threads": torch.get_num_threads(),
    }
    print(
        f"{environment()['machine']}, {result['device']}; torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(
        f"{trunk}, {layers} layers of {hidden}, batch {batch}, {torch.get_num_threads()} threads, plain attention "
        f"{result['attention']}; {pairs} interleaved pairs; others kept {result['others_cpus'] or 0:.1f} processors busy"
    )
    for kind, take in (("update", lambda pair: pair[1]), ("step", sum)):
        our, plain_ms = (np.array([take(pair) for pair in times[name]]) * 1e3 for name in ("ours", "plain"))
        ratios = plain_ms / our
        result[kind] = {"ours_ms": our.tolist(), "plain_ms": plain_ms.tolist(), "ratio": float(np.median(ratios))}
        low, high = np.quantile(ratios, [0.1, 0.9])
        print(
            f"{kind:7} ours {np.median(our):8.1f} ms   plain {np.median(plain_ms):8.1f} ms   ratio {np.median(ratios):.2f} "
            f"[{low:.2f} – {high:.2f}]"
        )
    if record is not None:
        record.write_text(json.dumps(result, indent=1) + "\n")


def prepare(
    scratch: Path, trunk: str, hidden: int, layers: int, batch: int
) -> tuple[EarlyExitModel, EncodedPages, TrainingRecipe]:
    """Make a model with an exit after every layer, and encode drawn pages for it."""
    draw_folder(scratch / "pages", 8, seed=1)
    data = read_dataset(scratch / "pages")
    sizes = dict(with_defaults(TrainingRecipe(trunk=trunk)).model)
    sizes |= {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": max(1, hidden // 64)}
    if trunk == "layoutlmv3":
        sizes |= {"coordinate_size": hidden // 6, "shape_size": (hidden - 4 * (hidden // 6)) // 2}
    sizes["exits"] = [f"encoder.{layer}" for layer in range(1, layers)]
    sizes["heads"] = {name: {"reads": "cls"} for name in sizes["exits"]}
    words = (data.page(index).words or [] for index in range(len(data)))
    tokenizer = checkpoint.train_tokenizer((list(page) for page in words), 8000)
    family = FAMILIES[trunk]
    if family.reads("text"):
        sizes |= {"vocab_size": tokenizer.get_vocab_size(), **checkpoint.special_ids(tokenizer)}
    model = family(family.config_class(**sizes, id2label=dict(enumerate(data.labels))))
    encoder = Encoder(checkpoint.encoding_of(model.config), tokenizer)
    encoding = encoding_digest(encoder, tokenizer, model)
    pages = encode_pages(data, encoder, model, scratch / "cache", encoding, lambda done, total: None)
    return model, pages, TrainingRecipe(trunk=trunk, epochs=1000, batch_size=batch, text_dropout=False)


def time_step(
    loop: tuple[Callable[[int], Any], Callable[[int, Any], None]], step: int, device: torch.device
) -> tuple[float, float]:
    """Time the making of a batch and the update, in seconds."""
    make, update = loop
    began = time.perf_counter()
    made = make(step)
    middle = time.perf_counter()
    update(step, made)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return middle - began, time.perf_counter() - middle


if __name__ == "__main__":
    main()
