"""The part of `ee-export demo` that needs torch: export the sample's checkpoint again."""

from dataclasses import replace
from pathlib import Path

from ee_export.builder.build import export
from ee_export.model import checkpoint
from ee_export.package.store import GOLDEN, Package
from ee_export.package.write import seal
from ee_export.progress import Progress
from ee_export.verify import golden


def export_again(shipped: Package, checkpoint_folder: Path, target: str, out: Path, progress: Progress) -> Package:
    """Export the checkpoint of a package into ``out``, with the policy and the golden logits of the package.

    Calibration and operating points come from the package, because they were fitted on real pages.

    Raises:
        BadRequest: the package lacks the target.
    """
    policy = shipped.target(target)
    pages, _ = golden.read(shipped)
    model, tokenizer = checkpoint.load(checkpoint_folder)
    model.keep_exits(shipped.manifest.exits)
    parted = checkpoint.make_parted_model(model, tokenizer)
    exported = export(parted, [page.inputs for page in pages], out, "documents", progress)
    compiled = replace(
        exported.target(target),
        costs=policy.costs,
        calibration=policy.calibration,
        operating_points=policy.operating_points,
    )
    (exported.path / GOLDEN).write_bytes(shipped.read(GOLDEN))
    return seal(exported.path, replace(exported.manifest, targets={target: compiled}))
