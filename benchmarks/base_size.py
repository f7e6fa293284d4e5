"""Build a package of LayoutLMv3-base's size with random weights, for `ee-bench exits`.

python benchmarks/base_size.py /tmp/base.ee && ee-bench exits /tmp/base.ee
"""

from dataclasses import replace
from pathlib import Path

import click
import torch
from rich.progress import Progress

from ee_export.builder.build import export, golden_inputs
from ee_export.builder.compile import add_golden_logits
from ee_export.builder.draft import make_draft_chain
from ee_export.builder.quantize import quantize_target
from ee_export.model import checkpoint
from ee_export.model.exits import parse_exits
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3, EarlyExitLayoutLMv3Config
from ee_export.package.atomic import staged_folder
from ee_export.package.store import GOLDEN
from ee_export.package.write import seal
from ee_export.runtime import openvino
from ee_export.runtime.load import load_package
from ee_export.verify import golden


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--layers", default=12, show_default=True, help="Layers of the encoder.")
@click.option("--exits", default="all", show_default=True, help="Exits of the model, such as encoder.6,encoder.9.")
@click.option("--targets", is_flag=True, help="Also add the targets cpu-int8 and openvino-bf16.")
@click.option(
    "--checkpoint", "kept", type=click.Path(path_type=Path), help="Also write the checkpoint to this folder, for peers."
)
def main(out: Path, layers: int, exits: str, targets: bool, kept: Path | None) -> None:
    """Write the package OUT, by default with every exit. Its only operating point is `full`."""
    torch.manual_seed(0)
    tokenizer = checkpoint.train_tokenizer(iter([["page"]]), 300)
    config = EarlyExitLayoutLMv3Config(
        num_hidden_layers=layers,
        max_position_embeddings=514,
        vocab_size=50265,
        exits=list(parse_exits(exits, layers)),
        id2label={0: "a", 1: "b", 2: "c"},
        label2id={"a": 0, "b": 1, "c": 2},
    )
    model = EarlyExitLayoutLMv3(config).eval()
    parted = checkpoint.make_parted_model(model, tokenizer)
    with Progress() as bars, staged_folder(out, overwrite=True) as staging:
        tasks = {stage: bars.add_task(stage) for stage in ("export", "prove")}
        package = export(
            parted,
            golden_inputs(parted, None),
            staging,
            "base",
            lambda s, done, all_: bars.update(tasks[s], completed=done, total=all_),
        )
        if targets:
            chain, pages = load_package(package, one_pool=True), golden.read(package)[0]
            new_targets = {
                "cpu-int8": quantize_target(package, staging / "cpu-int8", "dynamic", (), ()),
                "openvino-bf16": openvino.make_target(package, package.path / "openvino-bf16"),
            }
            targets_by_name = dict(package.manifest.targets)
            for name, target in new_targets.items():
                targets_by_name[name], pages = add_golden_logits(
                    make_draft_chain(chain, name, target, staging), name, target, pages
                )
            manifest = replace(package.manifest, targets=targets_by_name)
            (staging / GOLDEN).write_bytes(golden.write(pages, manifest))
            seal(staging, manifest)
    if kept is not None:
        with staged_folder(kept, overwrite=True) as staging:
            checkpoint.save(staging, model, tokenizer, torch.float32)
    worst = max(package.target("cpu-fp32").equality.values())
    print(f"{out}: {len(config.exit_names())} exits, largest logit difference from eager torch {worst:.1e}")


if __name__ == "__main__":
    main()
