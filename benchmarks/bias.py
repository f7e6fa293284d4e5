"""Time to recompute the attention's bias in a segment, and to move it when a batch is re-batched, on this processor.

python benchmarks/base_size.py build/base.ee && python benchmarks/bias.py build/base.ee --record benchmarks/results/bias.json
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from ee_export.bench.machine import environment
from ee_export.bench.statistics import interleave, make_timer, spread
from ee_export.data.encode import Arrays, blank_page
from ee_export.package.store import open_package
from ee_export.runtime.ort import available_threads, open_session
from ee_export.segments.join import load
from ee_export.segments.recompute import extract_recomputations, recompute


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--tokens", type=int, help="Text tokens per page.  [default: the most that the model reads]")
@click.option(
    "--batch",
    "batches",
    type=int,
    multiple=True,
    default=(8, 16),
    show_default=True,
    help="Pages of a batch. Repeatable.",
)
@click.option("--runs", default=10, show_default=True, help="Interleaved rounds.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(path: Path, tokens: int | None, batches: tuple[int, ...], runs: int, record: Path | None) -> None:
    """Time the float32 graphs of the package PATH in onnxruntime, and moves of rows by numpy, which calls memmove."""
    package = open_package(path)
    segments = package.target("cpu-fp32").segments
    maker = next(
        index for index, segment in enumerate(segments) if any(tensor.name == "bias" for tensor in segment.outputs)
    )
    reader = next(
        segment for segment in segments[maker + 1 :] if any(tensor.name == "bias" for tensor in segment.inputs)
    )
    own = extract_recomputations(load(package, segments[maker]), segments[maker])[0].graph
    graphs = [load(package, segments[maker]), load(package, reader)]
    recompute(graphs, (segments[maker], reader))
    threads = available_threads()
    sessions = {
        "bias alone": open_session(own.SerializeToString(), threads),
        "segment, carried": open_session(load(package, reader).SerializeToString(), threads),
        "segment, recomputed": open_session(graphs[1].SerializeToString(), threads),
    }
    page = blank_page(package.manifest.encoding, tokens or package.manifest.encoding.max_text_tokens)
    result: dict[str, Any] = {**environment(), "package": path.name, "segment": reader.exit, "runs": runs, "ms": {}}
    result |= {"threads": threads, "text_tokens": page["bbox"].shape[1]}
    print(f"{result['machine']}; {runs} interleaved rounds; ms a page of the batch, median [p10 – p90]")
    rng = np.random.default_rng(0)
    for batch in batches:
        feeds: Arrays = {name: np.repeat(page[name], batch, 0) for name in ("bbox", "attention_mask")}
        feeds["bbox"] = np.sort(rng.integers(0, 1001, feeds["bbox"].shape), axis=2)
        feeds["bias"] = sessions["bias alone"].run(["bias"], feeds)[0]
        length = feeds["bias"].shape[-1]
        for tensor in reader.inputs:
            if tensor.name not in feeds:
                shape = [{"B": batch, "L": length}.get(str(axis), axis) for axis in tensor.shape]
                feeds[tensor.name] = rng.standard_normal(shape).astype(np.float32)
        figures = _measure(sessions, feeds, runs)
        result |= {"tokens": length, "bias_bytes_a_page": feeds["bias"].nbytes // batch}
        result["ms"][str(batch)] = figures
        print(f"\n{batch} pages of {length} tokens, {feeds['bias'].nbytes // batch / 2**20:.1f} MiB of bias each")
        for name, figure in figures.items():
            print(f"  {name:24} {figure['median']:8.3f} [{figure['p10']:.3f} – {figure['p90']:.3f}]")
    if record is not None:
        record.write_text(json.dumps(result, indent=1) + "\n")


def _measure(sessions: dict[str, Any], feeds: Arrays, runs: int) -> dict[str, dict[str, float]]:
    """Measure milliseconds per page of the batch."""
    batch = len(feeds["bias"])

    def session(name: str) -> Callable[[], Any]:
        inputs = {value.name: feeds[value.name] for value in sessions[name].get_inputs()}
        return lambda: sessions[name].run(None, inputs)

    def move() -> None:  # remaining pages from the end replace as many pages that have exited
        feeds["bias"][: batch // 2] = feeds["bias"][batch // 2 : batch // 2 * 2]

    variants = {name: make_timer(session(name)) for name in sessions}
    variants["half of the rows moved"] = make_timer(move)
    return {name: asdict(spread(times / batch)) for name, times in interleave(variants, runs).items()}


if __name__ == "__main__":
    main()
