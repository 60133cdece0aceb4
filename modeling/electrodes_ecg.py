"""Electrodes in each other's place, found by how well the leads go together.

Exchanged limb electrodes leave Einthoven's and Goldberger's identities intact, and exchanged chest electrodes leave
each lead as it is; what changes is how each lead goes with the others: I follows V5 and V6 unless the arms are
exchanged, and neighbours on the chest resemble each other most.  A linear score of the correlations and relative
amplitudes of the eight independent leads says how usual an arrangement looks; the score of what was recorded is
compared with that of each exchange undone.  For research use; not a medical device.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from .filtering_ecg import resample

INDEPENDENT_LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
RATE = 100.0  # Hz
LAG = 4  # samples: what changes within 40 ms is QRS and T waves, and little of the baseline

# Learned by `benchmarks/electrode_weights.py` from PTB-XL's folds 1 to 7: of the logarithms of relative amplitudes
# (diagonal) and of correlations.  The margin between scores, above which an exchange is told, is from fold 8.
WEIGHTS = np.array(
    [
        [-0.24, -3.17, -5.41, 2.8, 1.57, -0.12, 1.43, 3.09],
        [0, 0.04, -0.67, -2.43, 1.62, 1.31, 0.78, 2.87],
        [0, 0, -3.42, 1.86, 0.38, -2.91, -6.12, -7.41],
        [0, 0, 0, 1.49, 8.31, 0.49, -5.24, -7.24],
        [0, 0, 0, 0, 3.75, 10.49, 0.3, -6.66],
        [0, 0, 0, 0, 0, 2.92, 9.38, -1.3],
        [0, 0, 0, 0, 0, 0, 0.64, 5.65],
        [0, 0, 0, 0, 0, 0, 0, -5.19],
    ]
)
MARGIN = 5.74


def _limbs(one: tuple[float, float], two: tuple[float, float]) -> np.ndarray:
    """Lead I and lead II as recorded, each as a combination (of I, of II) of the correct ones."""
    exchange = np.eye(8)
    exchange[:2, :2] = one, two
    return exchange


def _chest(order: str) -> np.ndarray:
    """Chest leads as recorded: "213456" with V1 and V2 exchanged."""
    return np.eye(8)[[0, 1, *(1 + int(digit) for digit in order)]]


def _pair(first: int, second: int) -> str:
    return "123456".translate(str.maketrans(f"{first}{second}", f"{second}{first}"))


# I = LA - RA and II = LL - RA, with the voltages of the arms and the left leg.  LA and LL are left out: exchanged,
# they make an ECG that is as usual as the correct one.
LIMB_EXCHANGES = {
    "the arm electrodes (RA and LA)": _limbs((-1, 0), (-1, 1)),
    "the electrodes of right arm and left leg (RA and LL)": _limbs((1, -1), (0, -1)),
    "the limb electrodes in a circle (RA to LA to LL)": _limbs((-1, 1), (-1, 0)),
    "the limb electrodes in a circle (RA to LL to LA)": _limbs((0, -1), (1, -1)),
}
CHEST_EXCHANGES = {
    f"V{first} and V{second}": _chest(_pair(first, second))
    for first, second in combinations(range(1, 7), 2)
    if second - first <= 2 or (first, second) == (1, 6)
} | {"V1 to V6 in reverse": _chest("654321")}
EXCHANGES = LIMB_EXCHANGES | CHEST_EXCHANGES  # (8, 8) each: correct leads -> recorded ones


def lead_covariance(leads: Mapping[str, np.ndarray], sampling_rate: float) -> np.ndarray | None:
    """(8, 8) covariance of the changes within 40 ms in the independent leads; None where one is missing or flat."""
    if not set(INDEPENDENT_LEADS) <= leads.keys() or sampling_rate < RATE:
        return None
    signal = resample(np.stack([leads[name] for name in INDEPENDENT_LEADS]), sampling_rate, RATE)
    if signal.shape[1] <= 10 * LAG:
        return None
    changes = signal[:, LAG:] - signal[:, :-LAG]
    covariance = changes @ changes.T / changes.shape[1]
    return covariance if np.diag(covariance).min() > 1e-6 else None  # (1 uV)^2


def arrangement_features(covariance: np.ndarray) -> np.ndarray:
    """(..., 36): logarithms of the leads' amplitudes over their mean, then correlations, of (..., 8, 8)."""
    amplitudes = np.sqrt(np.einsum("...ii->...i", covariance))
    logarithms = np.log(amplitudes)
    correlations = covariance / (amplitudes[..., :, None] * amplitudes[..., None, :])
    rows, columns = np.triu_indices(8, 1)
    relative = logarithms - logarithms.mean(axis=-1, keepdims=True)
    return np.concatenate([relative, correlations[..., rows, columns]], axis=-1)


def exchanged_electrodes(covariance: np.ndarray) -> str | None:
    """Which electrodes seem to be in each other's place, a key of `EXCHANGES`."""
    undone = np.stack([np.eye(8), *(np.linalg.inv(exchange) for exchange in EXCHANGES.values())])
    weights = np.concatenate([np.diag(WEIGHTS), WEIGHTS[np.triu_indices(8, 1)]])
    scores = arrangement_features(undone @ covariance @ undone.transpose(0, 2, 1)) @ weights  # (1 + exchanges,)
    best = int(scores[1:].argmax())
    return list(EXCHANGES)[best] if scores[1 + best] - scores[0] > MARGIN else None
