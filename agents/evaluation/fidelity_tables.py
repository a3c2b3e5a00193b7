"""Tables of what a world model knows beside returns: counterfactuals and pictures."""

from __future__ import annotations

from dataclasses import asdict

from wm_gym.agents.evaluation.counterfactuals import CounterfactualScore, HeldScore
from wm_gym.agents.evaluation.pictures import LEAST_LPIPS_SIDE, PictureScore
from wm_gym.bench.table import Table
from wm_gym.perceptual import WEIGHTS_NAME

_NO_LPIPS = (
    f"LPIPS is left out: it needs AlexNet's weights ({WEIGHTS_NAME}) in torchvision's cache, and frames of at least "
    f"{LEAST_LPIPS_SIDE} pixels."
)


def counterfactual_tables(score: CounterfactualScore) -> list[Table]:
    """What comes of each value of wheel and pedals, and how well the dream tells it."""
    held = {"wheel": score.wheel, "pedals": score.pedals}
    agreement = Table(
        name="counterfactuals",
        title=f"Does the dream know what wheel and pedals do, held for {score.steps} steps?",
        columns=(
            ("control", "held", ""),
            ("values", "values", ".0f"),
            ("pearson", "Pearson", ".3f"),
            ("error", "mean absolute error", ".1f"),
        ),
        rows=[
            {"control": control, "values": len(one.values), "pearson": one.pearson, "error": one.mean_absolute_error}
            for control, one in held.items()
        ],
        notes=(f"Over all values at {score.points} moments of episodes.",),
    )
    return [agreement, *(_means_table(control, one) for control, one in held.items())]


def _means_table(control: str, score: HeldScore) -> Table:
    keys = [f"{value:+g}" if value else "0" for value in score.values]
    means = {"the simulator": score.real, "the dream": score.predicted}
    return Table(
        name=control,
        title=f"Mean return with the {control} held",
        columns=(("source", "in", ""), *((key, key, ".1f") for key in keys)),
        rows=[{"source": source, **dict(zip(keys, values, strict=True))} for source, values in means.items()],
    )


def picture_table(score: PictureScore) -> Table:
    """Dreamt frames by number of steps, beside what repeating the last frame gives."""
    has_lpips = any(one.lpips is not None for one in score.by_horizon)
    measures = [("psnr", "PSNR (dB)", ".1f"), ("ssim", "SSIM", ".3f")] + [("lpips", "LPIPS", ".3f")] * has_lpips
    columns = [("steps", "steps ahead", ".0f"), ("frames", "frames", ".0f")]
    for name, heading, kind in measures:
        columns += [(name, heading, kind), (f"{name}_copy", "last frame repeated", kind)]
    notes = [] if has_lpips else [_NO_LPIPS]
    if score.frechet is not None:
        notes.append(
            f"Frechet distance in the bundled encoder's latents (not FVD) over {score.frechet_sequences} sequences: "
            f"{score.frechet:.1f}; of the last frame repeated {score.frechet_copy:.1f}."
        )
    return Table(
        name="pictures",
        title="How near are dreamt frames to the simulator's under the same actions?",
        columns=tuple(columns),
        rows=[asdict(one) for one in score.by_horizon],
        notes=tuple(notes),
    )
