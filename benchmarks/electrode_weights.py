"""Learns the weights of `modeling/electrodes_ecg.py` from PTB-XL, folds 1 to 7, and its margin from fold 8.

    python benchmarks/electrode_weights.py --ptb-xl DIR

DIR is PhysioNet's layout (records100/) with a table of folds.  Each recording is taken to be correct; the weights make
it likely (softmax) among itself and its exchanges.  The margin leaves 0.5 % of fold 8 with a finding.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from ecgformers.modeling.electrodes_ecg import EXCHANGES, arrangement_features, lead_covariance
from ecgformers.modeling.reading_ecg import read_ecg

PENALTY, FALSE_ALARMS = 1e-4, 0.005


def covariances(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(records, 8, 8) of all usable records, and their folds."""
    tables = [path for path in (folder / "ptbxl_labels.csv", folder / "ptbxl_database.csv") if path.exists()]
    with open(tables[0], newline="") as table:
        folds = {row["filename_lr"]: int(row["strat_fold"]) for row in csv.DictReader(table)}
    found = []
    for name, fold in folds.items():
        record = read_ecg(folder / f"{name}.hea")
        covariance = lead_covariance(dict(zip(record.lead_names, record.signal, strict=True)), record.sampling_rate)
        if covariance is not None:
            found.append((covariance, fold))
    matrices, of_fold = zip(*found, strict=True)
    return np.stack(matrices), np.array(of_fold)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptb-xl", type=Path, required=True)
    matrices, folds = covariances(parser.parse_args().ptb_xl)
    undone = np.stack([np.eye(8), *(np.linalg.inv(exchange) for exchange in EXCHANGES.values())])
    features = np.stack([arrangement_features(one @ matrices @ one.T) for one in undone], axis=1)  # (n, exchanges, 36)
    learned = features[folds <= 7] - features[folds <= 7][:, :1]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = learned @ weights  # (n, 1 + exchanges), the recorded arrangement's is 0
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares = exponentials / exponentials.sum(axis=1, keepdims=True)
        gradient = np.einsum("ne,nef->f", shares, learned) / len(learned) + 2 * PENALTY * weights
        return -np.log(shares[:, 0]).mean() + PENALTY * weights @ weights, gradient

    weights = minimize(loss, np.zeros(36), jac=True, method="L-BFGS-B", options={"maxiter": 300}).x.round(2)
    margins = (features[:, 1:] - features[:, :1]) @ weights  # (n, exchanges)
    margin = np.quantile(margins[folds == 8].max(axis=1), 1 - FALSE_ALARMS)
    table = np.diag(weights[:8])
    table[np.triu_indices(8, 1)] = weights[8:]
    print(f"{np.sum(folds <= 7)} records; margin {margin:.2f}")
    for row in table:
        print("    [" + ", ".join(f"{value:g}" for value in row) + "],")


if __name__ == "__main__":
    main()
