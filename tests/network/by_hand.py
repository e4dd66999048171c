"""One training step of the toy network in plain float64 arithmetic, from the paper's formulas.

Nothing of the package is used: convolutions, batch norm, softmaxes and losses are written out, and
TensorFlow's tape differentiates them. Weights are named `layer/variable`.

Shapes: B images, H x W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

Weights = dict[str, np.ndarray]
HEADS = ("coarse", "attention", "refine", "fine")
STATISTICS = ("moving_mean", "moving_variance")
EPSILON, MOMENTUM = 1e-3, 0.99  # Keras's for batch norm


@dataclass(frozen=True)
class Learning:
    """The loss of a step, and how it is minimised.

    Attributes:
        coarse: Weight of coarse's cross-entropy; likewise `attention`, `refine` and `fine`.
        class_weights: [C]; None gives all classes the same weight.
        balanced: Hard and easy pixels have the same total weight in the attention loss.
        clip_norm: Maximum norm of the gradient; 0 disables clipping.
        parts: Number of micro-batches.
        fine_above: P(hard) above which a pixel counts in fine's cross-entropy.
        affine_gate: The weights of fine and coarse are an affine function of attention.
        frozen: Batch norm is not trained.
        ohem: Share of the labelled pixels of a micro-batch that counts for coarse and fine.
        of_hard: w, where a pixel counts 1 + w P(hard) in the losses of fine and refine.
        smoothing: Weight of the uniform distribution in the targets of all but attention.
    """

    coarse: float = 1.0
    attention: float = 1.0
    refine: float = 1.0
    fine: float = 0.0
    class_weights: Sequence[float] | None = None
    balanced: bool = False
    clip_norm: float = 0.0
    parts: int = 1
    frozen: bool = False
    fine_above: float = 0.0
    affine_gate: bool = False
    ohem: float = 1.0
    of_hard: float = 0.0
    smoothing: float = 0.0


@dataclass(frozen=True)
class Step:
    """Results of a step.

    Attributes:
        gradients: Gradient of every trained weight.
        statistics: Moving mean and variance of batch norm after the step.
        figures: Losses and accuracies, as means over labelled pixels.
        pixels: Number of labelled pixels.
        norm: Global norm of the gradient before clipping.
    """

    gradients: Weights
    statistics: Weights
    figures: dict[str, float]
    pixels: int
    norm: float


def step(weights: Weights, images: np.ndarray, labels: np.ndarray, how: Learning) -> Step:
    """Returns the results of one step on images [B, H, W, 3] and labels [B, H, W] (-1 is void)."""
    learned = {name: value for name, value in weights.items() if _learns(name, how)}
    variables = {name: tf.constant(value, tf.float64) for name, value in weights.items()}
    gradients = {name: np.zeros(value.shape) for name, value in learned.items()}
    statistics = {n: v for n, v in weights.items() if n.endswith(STATISTICS)}
    figures: dict[str, float] = {}
    parts = zip(np.split(images, how.parts), np.split(labels, how.parts), strict=True)
    for part_images, part_labels in parts:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variables[name] for name in learned])
            logits, moments = forward(variables, part_images, training=not how.frozen)
            losses = _losses(logits, part_labels, labels, how)
            minimised = losses | {
                head: losses[f"minimised_{head}"] for head in ("coarse", "fine", "refine")
            }
            loss = tf.add_n([getattr(how, head) * minimised[head] for head in HEADS])
        found = tape.gradient(loss, [variables[name] for name in learned])
        for name, gradient in zip(learned, found, strict=True):
            if gradient is not None:
                gradients[name] = gradients[name] + gradient.numpy()
        if not how.frozen:
            statistics = {
                n: MOMENTUM * v + (1 - MOMENTUM) * moments[n.rsplit("/")[-1]].numpy()
                for n, v in statistics.items()
            }
        of_part = {"loss": loss, **{f"{head}_loss": losses[head] for head in HEADS}}
        of_part |= _accuracies(logits, part_labels, int((labels >= 0).sum()))
        figures = {n: figures.get(n, 0.0) + float(value) for n, value in of_part.items()}
    pixels = int((labels >= 0).sum())
    return Step(_clipped(gradients, how), statistics, figures, pixels, _norm(gradients))


def _learns(name: str, how: Learning) -> bool:
    return not name.endswith(STATISTICS) and not (how.frozen and name.startswith("body_norm/"))


def _norm(gradients: Weights) -> float:
    return float(np.sqrt(sum((gradient**2).sum() for gradient in gradients.values())))


def _clipped(gradients: Weights, how: Learning) -> Weights:
    norm = _norm(gradients)
    if not how.clip_norm or norm <= how.clip_norm:
        return gradients
    return {name: gradient * how.clip_norm / norm for name, gradient in gradients.items()}


def forward(
    weights: Mapping[str, Any], images: np.ndarray, *, training: bool
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Returns the logits of coarse, attention and fine, and the moments of batch norm."""
    weights = {name: tf.cast(value, tf.float64) for name, value in weights.items()}

    def conv(x: tf.Tensor, name: str) -> tf.Tensor:
        return tf.nn.conv2d(x, weights[f"{name}/kernel"], 1, "SAME") + weights[f"{name}/bias"]

    x = conv(tf.constant(images, tf.float64), "body")
    mean = tf.reduce_mean(x, [0, 1, 2])
    variance = tf.reduce_mean((x - mean) ** 2, [0, 1, 2])
    moments = {"moving_mean": mean, "moving_variance": variance}
    if not training:
        mean, variance = (weights[f"body_norm/{name}"] for name in STATISTICS)
    x = (x - mean) / tf.sqrt(variance + EPSILON)
    x = tf.nn.relu(weights["body_norm/gamma"] * x + weights["body_norm/beta"])
    logits = {head: conv(x, f"{head}_logits") for head in ("coarse", "fine")}
    if "attention_logits/scale" in weights:
        surest = tf.reduce_max(_softmax(tf.stop_gradient(logits["coarse"])), -1, keepdims=True)
        surest = tf.clip_by_value(surest, 1e-6, 1 - 1e-6)
        confidence = weights["attention_logits/scale"] * tf.math.log(surest / (1 - surest))
        easy = tf.constant([0.0, 1.0], tf.float64)
        logits["attention"] = conv(x, "attention_small") + easy * confidence
    else:
        logits["attention"] = conv(x, "attention_logits")
    if "gate/scale" in weights:
        half = tf.constant([0.5, -0.5], tf.float64)
        scale, bias = weights["gate/scale"], weights["gate/bias"]
        logits["gate"] = 10.0 * scale * logits["attention"] + 10.0 * bias * half
    return logits, moments


def _softmax(logits: tf.Tensor) -> tf.Tensor:
    powers = tf.exp(logits - tf.stop_gradient(tf.reduce_max(logits, -1, keepdims=True)))
    return powers / tf.reduce_sum(powers, -1, keepdims=True)


def blend(logits: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns the blended probabilities [B, H, W, C]: P(easy) coarse + P(hard) fine.

    If there is a gate, its probabilities replace those of attention.
    """
    hard, easy = tf.split(_softmax(logits.get("gate", logits["attention"])), 2, -1)
    return easy * _softmax(logits["coarse"]) + hard * _softmax(logits["fine"])


def _losses(
    logits: dict[str, tf.Tensor], labels: np.ndarray, whole: np.ndarray, how: Learning
) -> dict[str, tf.Tensor]:
    """Returns a micro-batch's share of each mean over the labelled pixels of the batch."""
    classes = logits["coarse"].shape[-1]
    truth = np.maximum(labels, 0)
    of_class = np.ones(classes) if how.class_weights is None else np.array(how.class_weights)
    mass, total = (np.where(x >= 0, of_class[np.maximum(x, 0)], 0.0) for x in (labels, whole))

    def nll(probabilities: tf.Tensor, truth: np.ndarray, smoothing: float = 0.0) -> tf.Tensor:
        size = probabilities.shape[-1]
        true = (1 - smoothing) * tf.one_hot(truth, size, dtype=tf.float64) + smoothing / size
        return -tf.reduce_sum(true * tf.math.log(probabilities), -1)

    probabilities = {head: _softmax(logits[head]) for head in ("coarse", "fine")}
    probabilities["refine"] = blend(logits)
    divisor = total.sum() or 1.0
    pixelwise = {head: nll(p, truth, how.smoothing) for head, p in probabilities.items()}
    losses = {head: tf.reduce_sum(mass * each) / divisor for head, each in pixelwise.items()}
    hard = _softmax(logits["attention"])[..., 0].numpy()
    chosen = {"coarse": pixelwise["coarse"], "fine": pixelwise["fine"] * (hard > how.fine_above)}
    chosen = {h: v * _hardest(v.numpy(), labels, how.ohem) for h, v in chosen.items()}
    chosen["refine"] = pixelwise["refine"]
    for head, values in chosen.items():
        counted = mass * (1 + how.of_hard * hard * (head != "coarse"))
        losses[f"minimised_{head}"] = tf.reduce_sum(counted * values) / divisor
    easy = (logits["coarse"].numpy().argmax(-1) == truth).astype(int)  # no way back for gradients
    doubt = nll(_softmax(logits["attention"]), easy)
    losses["attention"] = tf.reduce_sum(_attention_mass(easy, labels, how) * doubt) / max(
        (whole >= 0).sum(), 1
    )
    return losses


def _hardest(values: np.ndarray, labels: np.ndarray, share: float) -> np.ndarray:
    """Returns 1 / share at about that share of the labelled pixels, else 0; ties do not occur."""
    labelled = np.flatnonzero(labels.ravel() >= 0)
    kept = int(np.ceil(share * labelled.size))
    chosen = labelled[np.argsort(-values.ravel()[labelled])[:kept]]
    weights = np.zeros(values.size)
    weights[chosen] = labelled.size / max(kept, 1)
    return weights.reshape(values.shape)


def _attention_mass(easy: np.ndarray, labels: np.ndarray, how: Learning) -> np.ndarray:
    """Returns weights [B, H, W] that sum to the number of labelled pixels."""
    valid = labels >= 0
    if not how.balanced:
        return valid.astype(float)
    groups = [group for group in (valid & (easy == 0), valid & (easy == 1)) if group.any()]
    share = valid.sum() / max(len(groups), 1)
    return sum((group * share / group.sum() for group in groups), np.zeros(valid.shape))


def _accuracies(logits: dict[str, tf.Tensor], labels: np.ndarray, pixels: int) -> dict[str, float]:
    right = {head: answer == labels for head, answer in answers(logits).items()}
    found = {f"{head}_accuracy": hits.sum() / max(pixels, 1) for head, hits in right.items()}
    gate = logits.get("gate", logits["attention"])
    for name, each in (("mean_attention", logits["attention"]), ("mean_gate", gate)):
        first = _softmax(each)[..., 0].numpy()
        found[name] = first[labels >= 0].sum() / max(pixels, 1)
    return found


def answers(logits: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    """Returns the class ids [B, H, W] predicted by coarse, fine and refine."""
    scores = {"coarse": logits["coarse"], "fine": logits["fine"], "refine": blend(logits)}
    return {head: value.numpy().argmax(-1) for head, value in scores.items()}
