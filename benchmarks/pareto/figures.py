"""Figures of a study: metrics with intervals, gains of choices, figures per exit and per deadline."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ee_export.builder.predictions import ExitPredictions
from ee_export.data.encode import Arrays
from ee_export.package.manifest import Manifest, Target
from ee_export.policy import metrics
from ee_export.policy.decide import score_pages
from ee_export.runtime.chain import Chain
from ee_export.runtime.plan import make_rules


def compute_gains(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Compute the gain of each choice at the operating point.

    Gains are paired differences on the same test pages with 95 % intervals. Calibration, criterion and thresholds are
    compared with the first of each in the grid while all else is equal. Models are compared with the first model under
    the first policy.
    """
    entries = []

    def compare(kind: str, name: str, run: dict[str, Any], base: dict[str, Any]) -> None:
        entry: dict[str, Any] = {"choice": kind, "of": name}
        for key, values in run["pages"].items():
            entry[key] = metrics.paired_difference(values, base["pages"][key], draws=2000)
        entries.append(entry)

    keys = ("calibration", "criterion", "thresholds")
    firsts = {key: result["models"][0]["policies"][0][key] for key in keys}
    ran = [[policy for policy in model["policies"] if "pages" in policy] for model in result["models"]]
    for model, policies in zip(result["models"], ran, strict=True):
        name = model_name(model)
        for key in keys:
            others = [policy for policy in policies if policy[key] != firsts[key]]
            for other in (policy for policy in others if all(policy[k] == firsts[k] for k in keys if k != key)):
                compare(key, f"{other[key]} against {firsts[key]}: {name}", other, policies[0])
    for model, policies in zip(result["models"][1:], ran[1:], strict=True):
        if policies and ran[0]:
            against = f"{model_name(model)} against {model_name(result['models'][0])}"
            compare("model", against, policies[0], ran[0][0])
    return entries


def model_name(model: dict[str, Any]) -> str:
    """Name a model by placement, head and strategy."""
    return f"{model['placement']}, {model['head']}, {model['strategy']}"


def compute_metrics(
    probabilities: np.ndarray, targets: np.ndarray, exits: np.ndarray, depths: np.ndarray, times: np.ndarray
) -> dict[str, list[float]]:
    """Compute each metric with its 95 % bootstrap interval: value, low, high."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right = predicted == targets
    logs = np.log(np.maximum(probabilities, 1e-12))
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "accuracy": lambda rows: float(right[rows].mean()),
        "macro_f1": lambda rows: metrics.macro_f1(predicted[rows], targets[rows]),
        "micro_f1": lambda rows: metrics.micro_f1(predicted[rows], targets[rows]),
        "nll": lambda rows: metrics.nll(logs[rows], targets[rows]),
        "brier": lambda rows: metrics.brier(probabilities[rows], targets[rows]),
        "ece": lambda rows: metrics.ece(confidence[rows], right[rows]),
        "aurc": lambda rows: metrics.aurc(confidence[rows], right[rows]),
        "mean_depth": lambda rows: metrics.mean_depth(exits[rows], depths.tolist()),
        "mean_ms": lambda rows: float(times[rows].mean()),
        "p50_ms": lambda rows: float(np.percentile(times[rows], 50)),
        "p90_ms": lambda rows: float(np.percentile(times[rows], 90)),
        "p99_ms": lambda rows: float(np.percentile(times[rows], 99)),
    }
    everything = np.arange(len(targets))
    return {
        name: [statistic(everything), *metrics.bootstrap(statistic, len(targets), draws=400)]
        for name, statistic in statistics.items()
    }


def evaluate_exits(manifest: Manifest, target: Target, pages: ExitPredictions) -> dict[str, Any]:
    """Compute accuracy, calibration and reliability of every exit on all pages, under the target's calibration."""
    exits, per_exit = manifest.exits, make_rules(manifest, target, {})
    probabilities, scores = score_pages(
        [pages.logits[name] for name in exits], per_exit, "max_probability", [pages.tokens[name] for name in exits]
    )
    figures = {}
    for index, (name, rule) in enumerate(zip(exits, per_exit, strict=True)):
        right, confidence = probabilities[index].argmax(axis=1) == pages.targets, scores[index]
        figures[name] = {
            "accuracy": float(right.mean()),
            "nll": metrics.nll(pages.logits[name] * np.array(rule.scale) + np.array(rule.bias), pages.targets),
            "brier": metrics.brier(probabilities[index], pages.targets),
            "ece": metrics.ece(confidence, right),
            "aurc": metrics.aurc(confidence, right),
            "reliability": metrics.reliability(confidence, right),
        }
    return figures


def measure_deadlines(
    chain: Chain, pages: ExitPredictions, arrays: Sequence[Arrays], count: int = 8
) -> list[dict[str, float]]:
    """Measure accuracy at deadlines between the time of the first exit and that of the full model."""
    totals = np.array([sum(chain.time_segments(page).values()) for page in arrays[:12]])
    longest = 1.3 * float(np.median(totals))
    points = []
    for deadline in np.geomspace(longest / 40, longest, count).tolist():
        answers = [chain.predict_encoded(page, deadline_ms=deadline) for page in arrays]
        right = [
            chain.labels.index(answer.label) == target for answer, target in zip(answers, pages.targets, strict=True)
        ]
        late = [answer.latency_ms > deadline for answer in answers]
        points.append({"deadline_ms": deadline, "accuracy": float(np.mean(right)), "late": float(np.mean(late))})
    return points
