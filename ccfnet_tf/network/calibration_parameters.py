"""Numbers that are fitted on the validation split and stored beside the weights.

Those that make the maps probabilities are applied after the blend of coarse and fine and after the
class of a pixel is chosen, so that no label changes. Only the threshold of a hard blend changes
labels.

Depends on NumPy only: whoever averages or enlarges probabilities, exported ones too, does so with
uncalibrated ones, chooses labels, and calibrates the result. Calibrated ones would move outlines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SMALLEST = np.finfo(np.float32).tiny
_STEPS = 20  # of Newton's method; one is exact for a temperature
_CONVERGED = 1e-5  # largest error of the sum of the probabilities of a pixel


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

    @property
    def keeps_probabilities(self) -> bool:
        """Whether calibrated probabilities are the uncalibrated ones."""
        return self.scale == (1.0,) and not self.bias

    def scores(self, probabilities: np.ndarray, class_id: int | np.ndarray) -> np.ndarray:
        """Returns scale * log p + bias of one class per pixel; zeros count as the smallest float.

        Args:
            probabilities: Of that class, float32 [...], uncalibrated, 0..1.
            class_id: The class of all pixels, or int [...], that of each.
        """
        numbers = [np.asarray(each, np.float32) for each in (self.scale, self.bias or (0.0,))]
        scale, bias = (each[class_id] if each.size > 1 else each[0] for each in numbers)
        return np.asarray(np.log(np.maximum(probabilities, _SMALLEST)) * scale + bias)

    def calibrated(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns calibrated probabilities, float32 [..., C], of uncalibrated ones."""
        if self.keeps_probabilities:
            return probabilities
        scores = self.scores(probabilities, np.arange(probabilities.shape[-1]))
        raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=-1, keepdims=True))

    def uncalibrated(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns the probabilities from which `calibrated` makes these, float32 [..., C].

        With a temperature they are p^(1 / scale), divided by their sum. With vector scaling the
        divisor of the softmax is found by Newton's method. Zeros stay zeros.
        """
        if self.keeps_probabilities:
            return probabilities
        scale = np.asarray(self.scale, np.float32)
        with np.errstate(divide="ignore"):  # log 0 is -inf, and its power 0
            scores = np.log(probabilities) - np.asarray(self.bias or (0.0,), np.float32)
        # The sum of exp(scores / scale) is convex in a number added to the scores. This start is
        # above the solution, so that every step stays above it and none overflows.
        scores -= scores.max(axis=-1, keepdims=True)
        for _ in range(_STEPS):
            found = np.exp(scores / scale)
            total = found.sum(axis=-1, keepdims=True)
            if total.max(initial=1.0) < 1 + _CONVERGED or scale.size == 1:
                break
            scores -= np.log(total) * total / (found / scale).sum(axis=-1, keepdims=True)
        return np.asarray(found / total)

    def calibrated_attention(self, attention: np.ndarray) -> np.ndarray:
        """Returns calibrated attention, float32 [...], of uncalibrated attention, 0..1."""
        return _scaled(attention, self.attention_scale, self.attention_bias)

    def uncalibrated_attention(self, attention: np.ndarray) -> np.ndarray:
        """Returns the attention from which `calibrated_attention` makes this, float32 [...]."""
        scale, bias = self.attention_scale, self.attention_bias
        return _scaled(attention, 1 / scale, -bias / scale)


def _scaled(probability: np.ndarray, scale: float, bias: float) -> np.ndarray:
    """Returns sigmoid(scale * logit + bias); 0 and 1 stay."""
    if (scale, bias) == (1.0, 0.0):
        return probability
    probability = np.clip(probability, 0, 1)  # rounded by a runtime
    with np.errstate(divide="ignore", over="ignore"):
        logit = np.log(probability) - np.log1p(-probability)
        return np.asarray(1 / (1 + np.exp(-(np.float32(scale) * logit + np.float32(bias)))))


UNCALIBRATED = Calibration()
"""Leaves all maps as the network gives them."""
