"""What a report says in words: what was sent, what epsilon means, who could have learnt what.

It computes no guarantee. It puts the study's and the accountant's figures into sentences that a
board can read, and says what was not protected as plainly as what was. Its results are documents
with "study", "sites" and "privacy", of a simulation (results.json) or of a real study.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Json = Mapping[str, Any]

LABELS = {
    "accuracy": ("Accuracy", "share of records decided correctly"),
    "balanced_accuracy": ("Balanced accuracy", "accuracy with every class counting the same"),
    "precision": ("Precision", "of those called positive, the share that is"),
    "sensitivity": ("Sensitivity", "of those who are positive, the share found"),
    "specificity": ("Specificity", "of those who are negative, the share left alone"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
    "auc": ("AUC", "chance that a positive record scores above a negative one"),
    "pr_auc": ("PR-AUC", "mean precision over all thresholds"),
    "brier": ("Brier score", "squared error of the probabilities; lower is better"),
    "mae": ("Mean absolute error", "in the unit of the target; lower is better"),
    "rmse": ("Root mean squared error", "in the unit of the target; lower is better"),
    "sensitivity_95": ("Sensitivity at 95 %", "share found where 5 % of normal records alarm"),
    "false_alarms": ("False alarms", "of those without the event, the share that alarms at all"),
    "alarms_a_day": ("Alarms a day", "alarms that begin, of one record in a day"),
    "lead_hours": ("Lead time", "hours from first alarm to event, median of those found"),
    "ef1": ("Enrichment at 1 %", "positives among the top 1 % over those of a random choice"),
    "bedroc": ("BEDROC", "early recognition, alpha 20: 1 when all positives come first"),
    "c_index": ("C-index", "chance that of two records the one at higher risk has the event first"),
    "dice": ("Dice", "overlap of found and true structure, 2 shared / (found + true), a record"),
    "iou": ("IoU", "overlap of found and true structure, shared / either, mean of the records"),
    "dice_points": ("Dice of all points", "the points of all records counted as one record's"),
    "iou_points": ("IoU of all points", "the points of all records counted as one record's"),
    "surface_distance": (
        "Surface distance",
        "mean way between found and true outline; the diagonal where one is missing",
    ),
    "loss": ("Loss", "log loss in nats, or mean squared error; lower is better"),
}
MODELS = {
    "mlp": "a multi-layer perceptron",
    "cnn": "a convolutional network",
    "lstm": "an LSTM network",
    "gru": "a GRU network",
    "rnn": "a recurrent network",
    "autoencoder": "an autoencoder",
    "fusion": "a network of several parts",
    "attention": "a self-attention network",
    "unet": "a U-Net",
}
Verdict = Literal["protected", "partly", "not protected"]


@dataclass(frozen=True)
class Exposure:
    """What one party could learn about a patient, and whether the study protects against it."""

    who: str
    learns: str
    verdict: Verdict


def show(value: float | None) -> str:
    """Return a figure with three decimals, or four digits from ten on; "undefined" for None."""
    if value is None or not math.isfinite(value):
        return "undefined"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def show_epsilon(epsilon: float | None) -> str:
    """Return epsilon with two decimals (three below 0.1), rounded up: never less than was spent."""
    if epsilon is None or not math.isfinite(epsilon):
        return "undefined"
    digits = 2 if epsilon >= 0.1 else 3
    scaled = epsilon * 10**digits
    return f"{math.ceil(scaled - 1e-9) / 10**digits:.{digits}f}"


def label(name: str) -> str:
    """Return a metric's name as people write it."""
    return LABELS.get(name, (name.replace("_", " "), ""))[0]


def is_private(results: Json) -> bool:
    """Return whether the run was trained with differential privacy."""
    return bool(results["privacy"]["mode"] != "none")


def is_masked(results: Json) -> bool:
    """Return whether updates were masked, so that only their sum was opened."""
    masking = results["study"].get("aggregation", {}).get("masking", "fsa1")
    return bool(masking != "none")


def site_count(results: Json) -> int:
    """Return how many sites took part; results hold their names or their number."""
    sites = results["sites"]
    return sites if isinstance(sites, int) else len(sites)


def network_words(study: Json) -> str:
    """Return what was trained, as people call it."""
    model = study["model"]
    if model["name"] == "mlp" and not model.get("hidden", (64, 32)):
        return "a linear model"
    return MODELS.get(model["name"], str(model["name"]))


def sharing(results: Json) -> str:
    """Return one sentence on what the sites sent."""
    what = "its records" if not is_private(results) else "its records, with noise added"
    if is_masked(results):
        return f"Each site sent only masked updates, computed from {what}; their sum was opened."
    return f"Each site sent its update, computed from {what}, without a mask."


def epsilon_words(privacy: Json, covers: str) -> list[str]:
    """Return what epsilon and delta promise, for readers who meet them for the first time.

    Args:
        privacy: the guarantee (`shared_models.guarantee`).
        covers: one sentence that says which debits were added up.
    """
    epsilon, delta, unit = privacy["epsilon"], privacy["delta"], privacy["unit"]
    if epsilon is None:
        return [
            "No (epsilon, delta) guarantee was computed for this run. Nothing bounds what the "
            "model tells about a single patient."
        ]
    # Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, section 2.1: no test does better.
    right = (math.exp(epsilon) + delta) / (1 + math.exp(epsilon)) if epsilon < 500 else 1.0
    whose = "patient’s records" if unit == "patient" else "record"
    return [
        f"Whatever somebody concludes from this model, they would have concluded almost as readily "
        f"had any one {whose} not been there. Epsilon bounds that “almost”: the odds of any "
        f"conclusion change by at most a factor of {_factor(epsilon)}.",
        f"Put as a bet: somebody who knows everything else, and wagers on whether one {whose} took "
        f"part, would be right half of the time without the model, and at most "
        f"{_percent(right)} of the time with it. This is a worst case, not a forecast.",
        f"Delta ({delta:g}) is the small probability that is left out of this promise. It should "
        f"be far below one in the number of {'patients' if unit == 'patient' else 'records'}.",
        f"{covers} What all studies on a dataset have cost together, the ledger of its site says. "
        "A patient whom two hospitals know is protected at each of them by itself, and what the "
        "two tell adds up. A setting chosen by looking at real results is a run too, and is "
        "debited as one.",
        "Smaller epsilon means more privacy, and more noise in the model. It promises nothing "
        "about what is true of patients in general: that is what the model is for.",
    ]


def evaluation_words(privacy: Json) -> str:
    """Return what the released figures are made of, and what protects the held-out records."""
    evaluation = privacy["evaluation"]
    if evaluation["release"] == "exact":
        return (
            "exact sums over the sites, which each site’s policy must allow. Held-out patients are "
            "then protected by that sum alone, and not by differential privacy."
        )
    whose = "patient" if privacy["unit"] == "patient" else "record"
    return (
        f"it is computed from {evaluation['cells']} counts, each with noise of standard deviation "
        f"{evaluation['deviation']:.2g} added, so its interval is wide where few records are held "
        f"out. All evaluations together cost a held-out {whose} at most epsilon "
        f"{show_epsilon(evaluation['epsilon'])}."
    )


def noise_words(privacy: Json) -> list[str]:
    """Return what the guarantee of mode distributed rests on, or nothing in another mode."""
    noise = privacy.get("noise")
    if not noise:
        return []
    answers, colluders = noise["answers"], noise["colluders"]
    carriers = answers - colluders
    words = [
        f"Every site adds a share of the noise, and {carriers} shares are all of it. No sum of "
        f"fewer than {answers} of the {noise['sites']} sites is opened (t_n = {answers}), so that "
        + (
            f"up to {colluders} of them may leave their share out, or tell it to the server "
            f"(n_c = {colluders})."
            if colluders
            else "all of them must add theirs and keep it to themselves (n_c = 0)."
        )
    ]
    if noise["sampling_rate"] == 1:
        words.append(
            "The sampling rate is 1: every record is in every step, so nothing about a sample has "
            "to stay secret, and the steps add up exactly, as one Gaussian."
        )
    else:
        words.append(
            f"Every step draws its records with probability {noise['sampling_rate']:g}, and the "
            "figure holds while nobody outside a site learns which were drawn."
        )
    words.append(
        f"Gradients are computed in 32-bit floating point, in batches, and their last bits may "
        f"hang on the other records of a batch. One {privacy['unit']} is therefore charged "
        f"{100 * (noise['margin'] - 1):.1f}\u00a0% more than the clipping norm: a margin, not a "
        "proof. From there on all sums and all noise are whole numbers, and exact."
    )
    return words


def exposures(results: Json) -> list[Exposure]:
    """Return who can learn what when this study runs between hospitals."""
    return [_server(results), _peers(results), _reader(results)]


def _server(results: Json) -> Exposure:
    mode, least = results["privacy"]["mode"], _min_sites(results)
    if is_masked(results):
        learns = (
            f"Sums over at least {least} sites, and the model: never the update, the metrics or "
            "the record count of one site. This holds for a server that follows the protocol."
        )
        if mode == "local":
            learns += " One that does not would find each update with its full noise."
        if mode == "distributed":
            learns += " Each sum carries the whole noise. A server that does not follow it would "
            learns += "find single updates, with their share of the noise only."
        return Exposure(
            "The coordinator’s server", learns, "protected" if mode == "local" else "partly"
        )
    if mode == "local":
        learns = "The update of every site; each carries the full noise by itself."
        return Exposure("The coordinator’s server", learns, "protected")
    learns = "The update of every site by itself: it was sent without a mask"
    learns += ", with only a share of the noise." if mode == "distributed" else " or noise."
    return Exposure("The coordinator’s server", learns, "not protected")


def _peers(results: Json) -> Exposure:
    learns = "The sum of all updates, and the model."
    if results["privacy"]["mode"] == "local":
        learns += " All other sites together could subtract theirs from the sum, and would then "
        learns += "see one site’s update, which still carries its full noise."
        return Exposure("The other sites", learns, "protected")
    against = results["privacy"].get("against_sites")
    if against:
        who = "One that knows its own share of the noise"
        if against["sites"] > 1:
            who = f"As many as {against['sites']} that put together what they know of the noise"
        whose = "patient" if results["privacy"]["unit"] == "patient" else "record"
        learns += f" {who} will learn about one {whose} of another site no more than epsilon "
        learns += f"{show_epsilon(against['epsilon'])} allows."
    learns += " All other sites together could subtract theirs and see what is left: one site’s "
    if results["privacy"]["mode"] == "distributed":
        learns += "update with its share of the noise only."
    else:
        learns += "update."
    return Exposure("The other sites", learns, "partly")


def _reader(results: Json) -> Exposure:
    who = "Whoever holds the model"
    privacy = results["privacy"]
    if not is_private(results):
        return Exposure(
            who,
            "What a trained model remembers of single patients. Nothing bounds it here.",
            "not protected",
        )
    whose = "patient" if privacy["unit"] == "patient" else "record"
    return Exposure(
        who,
        f"About one {whose}, no more than epsilon {show_epsilon(privacy['epsilon'])} allows, "
        "whatever they know besides and however they compute.",
        "protected",
    )


def _min_sites(results: Json) -> int:
    least = int(results["study"].get("aggregation", {}).get("min_sites", 3))
    cohort = int(results["study"].get("aggregation", {}).get("cohort", 0))
    answering = (2 * (cohort or site_count(results))) // 3 + 1  # PROTOCOL: t = floor(2n/3) + 1
    noise = results["privacy"].get("noise") or {}
    return max(least, answering, int(noise.get("answers", 0)))


def _factor(epsilon: float) -> str:
    factor = math.exp(min(epsilon, 500.0))
    return f"{factor:.2f}" if factor < 10 else f"{factor:.3g}"


def _percent(share: float) -> str:
    """Write a share as a percentage that never rounds up to certainty."""
    text = f"{100 * share:.1f}\u00a0%"
    return text if not text.startswith("100") else "more than 99.9\u00a0%"
