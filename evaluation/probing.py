"""The linear classifier of the probes: multi-label logistic regression, all classes at once.

probe = choose_probe(train_features, train_targets, validation_features, validation_targets)
probe, held_out_scores = cross_validated_probe(features, targets, patients)
probabilities = probe(test_features)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from ecgformers.metrics.ranking import auroc, macro

PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class LinearProbe:
    """Features (n, features) -> probabilities (n, classes)."""

    mean: np.ndarray  # (features,)
    scale: np.ndarray  # (features,)
    weight: np.ndarray  # (features, classes)
    bias: np.ndarray  # (classes,)
    penalty: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return expit((features - self.mean) / self.scale @ self.weight + self.bias)


def fit_probes(
    features: np.ndarray, targets: np.ndarray, penalties: Sequence[float] = PENALTIES
) -> Iterator[LinearProbe]:
    """A probe for every penalty, each found from the one before: mean cross-entropy + penalty / 2 * |weight|^2.

    Features are standardised first.  A class of which the records show one label only gets the same probability
    everywhere, close to that label.

    Args:
        features: (n, features).
        targets: (n, classes) of 0 and 1.
    """
    records = len(features)
    mean, spread = features.mean(0), features.std(0)
    scale = np.where(spread > 1e-6 * np.abs(mean), spread, 1.0)  # a constant feature says nothing
    inputs = ((features - mean) / scale).astype(np.float32)
    positives = targets.sum(0)
    learnable = (positives > 0) & (positives < records)
    wanted = targets[:, learnable].astype(np.float32)
    prior = logit((positives + 0.5) / (records + 1))
    shape = (features.shape[1] + 1, int(learnable.sum()))  # the last row is the bias

    def objective(flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(shape)
        weight, bias = parameters[:-1].astype(np.float32), parameters[-1].astype(np.float32)
        logits = inputs @ weight + bias  # (n, classes)
        decay = np.exp(-np.abs(logits))
        loss = (np.maximum(logits, 0) - logits * wanted + np.log1p(decay)).sum(dtype=np.float64) / records
        error = (np.where(logits >= 0, 1, decay) / (1 + decay) - wanted) / records
        gradient = np.concatenate([inputs.T @ error + np.float32(penalty) * weight, error.sum(0, keepdims=True)])
        return loss + penalty / 2 * np.square(parameters[:-1]).sum(), gradient.ravel().astype(np.float64)

    parameters = np.zeros(shape)
    parameters[-1] = prior[learnable]
    for penalty in penalties:
        if parameters.size:
            found = minimize(
                objective,
                parameters.ravel(),
                args=(penalty,),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": 1000, "gtol": 3e-4, "ftol": 1e-9},
            )
            parameters = found.x.reshape(shape)
        weight, bias = np.zeros((features.shape[1], targets.shape[1])), prior.copy()
        weight[:, learnable], bias[learnable] = parameters[:-1], parameters[-1]
        yield LinearProbe(mean, scale, weight, bias, penalty)


def choose_probe(
    features: np.ndarray, targets: np.ndarray, validation_features: np.ndarray, validation_targets: np.ndarray
) -> LinearProbe:
    """The probe with the penalty whose macro AUROC on the validation records is highest.

    Raises:
        ValueError: no class has positives and negatives among the validation records.
    """
    probes = list(fit_probes(features, targets))
    quality = [float(macro(auroc(validation_targets, probe(validation_features)))) for probe in probes]
    if np.isnan(quality).all():
        raise ValueError("no class has positives and negatives among the validation records: nothing to choose by")
    return probes[int(np.argmax(quality))]


def cross_validated_probe(
    features: np.ndarray, targets: np.ndarray, patients: np.ndarray, folds: int = 5
) -> tuple[LinearProbe, np.ndarray]:
    """The probe of all records with the penalty that ranks left-out patients best, by macro AUROC.

    Args:
        features: (n, features).
        targets: (n, classes) of 0 and 1.
        patients: (n,); each is left out once, in one of `folds` parts (fewer, where there are fewer patients).

    Returns:
        the probe, and the scores (n, classes) of every record by the probe that it was left out of.

    Raises:
        ValueError: all records are of one patient, or no class has positives and negatives among them.
    """
    names, index = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        raise ValueError("the penalty cannot be chosen on one patient: take more records, or a validation split")
    part = np.random.default_rng(0).permutation(len(names))[index] % folds
    scores = np.zeros((len(PENALTIES), *targets.shape))
    for fold in np.unique(part):
        left_out = part == fold
        for each, probe in zip(scores, fit_probes(features[~left_out], targets[~left_out]), strict=True):
            each[left_out] = probe(features[left_out])
    quality = [float(macro(auroc(targets, each))) for each in scores]
    if np.isnan(quality).all():
        raise ValueError(
            f"no class has positives and negatives among {len(targets)} training records: nothing to choose by; take "
            "more records, or a validation split"
        )
    best = int(np.argmax(quality))
    return list(fit_probes(features, targets, PENALTIES[: best + 1]))[-1], scores[best]
