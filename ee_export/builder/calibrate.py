"""Fit a target's calibration and the weights of its criterion on held-out pages."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ee_export.builder.predictions import ExitPredictions
from ee_export.errors import require_known
from ee_export.package.manifest import Calibration, Manifest, Target, gate_name
from ee_export.policy.calibrate import fit_platt, fit_temperature, fit_vector
from ee_export.policy.calibrate import fit_weights as fit_per_exit
from ee_export.policy.criteria import CRITERIA
from ee_export.runtime.plan import make_rules


def calibrate_target(target: Target, pages: ExitPredictions, method: str = "temperature") -> Target:
    """Calibrate exits on ``pages`` by one of :data:`METHODS`, and gates by Platt scaling. Drops operating points.

    Raises:
        BadRequest: there is no such method.
    """
    require_known(method, METHODS, "calibration method")
    calibration = {}
    for segment in target.segments:
        name, logits = segment.exit, pages.logits[segment.exit]
        scale, bias = METHODS[method](logits, pages.targets)
        calibration[name] = Calibration(tuple(scale.tolist()), tuple(bias.tolist()))
        if gate_name(name) in pages.logits:
            right = (logits * scale + bias).argmax(1) == pages.targets
            slope, offset = fit_platt(pages.logits[gate_name(name)][:, 0], right)
            calibration[gate_name(name)] = Calibration((slope,), (offset,))
    return replace(target, calibration=calibration, operating_points={})


def _temperature(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.full(logits.shape[1], 1.0 / fit_temperature(logits, targets)), np.zeros(logits.shape[1])


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "none": lambda logits, targets: (np.ones(logits.shape[1]), np.zeros(logits.shape[1])),
    "temperature": _temperature,
    "vector": fit_vector,
}
"""Functions from an exit's raw logits ``[N, C]`` and labels ``[N]`` to scale and bias per class, ``[C]`` each."""


def fit_weights(
    manifest: Manifest, target: Target, criterion: str, pages: ExitPredictions
) -> dict[str, tuple[float, ...]]:
    """Fit the weights of a criterion per exit on ``pages``. Empty if the criterion has none."""
    fit = CRITERIA.find(criterion).fit
    if fit is None:
        return {}
    exit_rules = make_rules(manifest, target, {})
    logits = [pages.logits[name] for name in manifest.exits]
    tokens = [pages.tokens[name] for name in manifest.exits]
    gates = [pages.logits.get(gate_name(name)) for name in manifest.exits]
    weights = fit_per_exit(fit, logits, exit_rules, tokens, gates, pages.targets)
    return dict(zip(manifest.exits, weights, strict=True))
