"""What the report of a simulation says in words, beside what is said of every study.

It computes no guarantee. It puts a run's figures into sentences that a board can read, and says at
each of them that they are a simulation's.
"""

from shared_models import wording
from shared_models.wording import (
    Exposure,
    Json,
    evaluation_words,
    is_masked,
    is_private,
    label,
    network_words,
    show,
    site_count,
)

BASELINES = {
    "pooled": ("Pooled", "the same study with one site that has all records, without privacy"),
    "local_only": ("Each site alone", "the same network at one site, mean over the sites"),
    "linear": ("Linear model", "a linear model of its kind on all records in one place"),
    "last_value": ("Last value", "what was measured last, as the forecast of the next"),
    "slot_mean": ("Slot mean", "the mean of the training records of the same slot"),
}

COVERS = "It covers this run: every attempt that was debited, of the site that paid most."


def warnings(results: Json) -> list[str]:
    """Return what must be seen on every page: a protection that was switched off."""
    found = []
    if not is_private(results):
        found.append("No differential privacy")
    if not is_masked(results):
        found.append("No masking of updates")
    return found


def headline(results: Json) -> str:
    """Return one sentence on what was trained, by whom, for how long."""
    network = network_words(results["study"])
    named = results["study"]["data"]["target"]
    target = named if isinstance(named, str) else ", ".join(named)
    return (
        f"In this simulation, {site_count(results)} virtual sites trained {network} together in "
        f"{results['rounds']} rounds, to predict “{target}”."
    )


def result(name: str, figure: Json) -> str:
    """Return one sentence on the main figure and its interval."""
    inside = label(name)
    if not inside[:2].isupper():  # AUC stays, Accuracy does not
        inside = inside[0].lower() + inside[1:]
    if figure["value"] is None:
        return f"Its {inside} on the held-out records is undefined."
    text = f"On {figure['n']:,} held-out records its {inside} is {show(figure['value'])}"
    if figure["low"] is None or figure["high"] is None:
        return f"{text}."
    return f"{text} (95\u00a0% interval {show(figure['low'])} to {show(figure['high'])})."


def reading(curves: Json | None) -> str:
    """Return one sentence on what the metrics call positive, or "" for numbers."""
    if curves is None or not curves.get("classes"):
        return ""
    classes = curves["classes"]
    if len(classes) == 2:
        return f"Positive means “{curves.get('positive') or classes[1]}”."
    return f"Figures of the {len(classes)} classes are averaged, each class counting the same."


def release_words(results: Json) -> str:
    """Return what a real run would have told of the hold-out, and what protects those records."""
    if not is_private(results):
        return (
            "What a real run would have released: nothing; a study without differential privacy "
            "runs as a simulation only."
        )
    evaluation = results["privacy"].get("evaluation")
    if not results.get("released") or not evaluation:
        return "What a real run would have released: nothing; no evaluation was opened."
    told = evaluation_words(results["privacy"])
    return f"The column “released” is what a real run would have told: {told}"


def exposures(results: Json) -> list[Exposure]:
    """Return who could learn what when this study runs between hospitals."""
    mode = results["privacy"]["mode"]
    return [
        *wording.exposures(results),
        Exposure(
            "Readers of this report",
            "The exact figures of the held-out records, which no noise protects. A simulation may "
            "print them since its records are one machine’s own.",
            "not protected",
        ),
        Exposure(
            "Whoever runs this simulation",
            "Every record: they were all on one machine. A simulation shows what a study does; it "
            "protects nobody by itself."
            + (" Its noise came from a seed." if mode != "none" else ""),
            "not protected",
        ),
    ]
