"""Numbers that are fitted on the validation split and stored beside the weights.

Those that make the maps probabilities are applied after the blend of coarse and fine and after the
class of a pixel is chosen, so that no label changes. Only the threshold of a hard blend changes
labels.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """How refine's log-probabilities and attention's logit are calibrated.

    Calibrated probabilities are softmax(scale * log p + bias), per pixel; with one `scale` for all
    classes and no bias this is temperature scaling (Guo et al., ICML 2017) with temperature
    1 / scale, with one per class it is vector scaling. Calibrated attention is
    sigmoid(attention_scale * logit + attention_bias).

    Attributes:
        scale: One factor for all classes, or one for each; above 0.
        bias: One number per class, or empty for none.
        attention_scale: Factor of attention's logit; above 0, so that its order stays.
        attention_bias: Added to attention's logit.
        blend_threshold: P(hard), 0..1, above which a hard blend uses fine; None leaves it at
            `model.blend_threshold`. It is compared with attention as the network computes it.
    """

    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = ()
    attention_scale: float = 1.0
    attention_bias: float = 0.0
    blend_threshold: float | None = None


UNCALIBRATED = Calibration()
"""Leaves all maps as the network gives them."""
