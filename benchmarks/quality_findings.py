"""How often `check_ecg` finds faults that are put into real recordings, and what it finds in them as they are.

    python benchmarks/quality_findings.py --ptb-xl DIR [--others DIR ...] [--records 200] [--faults TEXT ...]

DIR of PTB-XL is PhysioNet's layout (records100/, ptbxl_database.csv or ptbxl_labels.csv), of which fold 9 is used.
Findings in recordings as they are count as false alarms, though some are true: PTB-XL has exchanged electrodes and
drifting baselines of its own.  Faults are put into `--records` of them; with `--faults`, only those whose name holds
one of the texts are run, and false alarms are not counted again.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from measuring import print_table

from ecgformers.modeling.electrodes_ecg import CHEST_EXCHANGES, INDEPENDENT_LEADS, LIMB_EXCHANGES
from ecgformers.modeling.filtering_ecg import resample
from ecgformers.modeling.findings_ecg import check_ecg
from ecgformers.modeling.leads_ecg import LIMB_LEADS, STANDARD_LEADS
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgRecord

Fault = Callable[[np.ndarray, float, np.random.Generator], tuple[np.ndarray, float]]  # signal (12, samples), rate
RHYTHMS = ("SR", "SBRAD", "STACH", "SARRH")


def exchange(matrix: np.ndarray) -> Fault:
    """Electrodes in each other's place: `matrix` makes the recorded independent leads of the correct ones."""

    def fault(signal: np.ndarray, rate: float, _: np.random.Generator) -> tuple[np.ndarray, float]:
        leads = dict(zip(STANDARD_LEADS, signal, strict=True))
        recorded = dict(zip(INDEPENDENT_LEADS, matrix @ np.stack([leads[n] for n in INDEPENDENT_LEADS]), strict=True))
        limbs = np.stack([recorded["I"], recorded["II"]])
        recorded |= {name: np.array(weights) @ limbs for name, weights in LIMB_LEADS.items()}
        return np.stack([recorded[name] for name in STANDARD_LEADS]), rate

    return fault


def mains(frequency: float) -> Fault:
    def fault(signal: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        signal, time = resample(signal, rate, 500), np.arange(round(signal.shape[1] * 500 / rate)) / 500
        sine = 0.1 * np.sin(2 * np.pi * (frequency + rng.uniform(-0.1, 0.1)) * time + rng.uniform(0, 6))
        return _some_leads(signal, sine, rng), 500.0

    return fault


def muscle(signal: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    return _some_leads(signal, rng.normal(scale=0.15, size=signal.shape[1]), rng), rate


def wander(signal: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    time = np.arange(signal.shape[1]) / rate
    return _some_leads(signal, 3 * np.sin(2 * np.pi * rng.uniform(0.1, 0.3) * time + rng.uniform(0, 6)), rng), rate


def loose(signal: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    start = rng.integers(signal.shape[1] // 5, signal.shape[1] // 2)
    step = np.where(np.arange(signal.shape[1]) >= start, rng.choice([-6.0, 6.0]), 0.0)
    return _some_leads(signal, step, rng), rate


def clipping(signal: np.ndarray, rate: float, _: np.random.Generator) -> tuple[np.ndarray, float]:
    """The lead with the largest waves meets a rail of 1.2 mV; longer waves rest there long enough to be seen."""
    signal = signal.copy()
    row = np.abs(signal).max(axis=1).argmax()
    signal[row] = np.clip(3 * signal[row], -1.2, 1.2)
    return signal, rate


def flat(signal: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    return np.where(np.arange(12)[:, None] == rng.integers(6, 12), 0.0, signal), rate


def gain(factor: float) -> Fault:
    return lambda signal, rate, _: (factor * signal, rate)


def wrong_rate(factor: float) -> Fault:
    return lambda signal, rate, _: (resample(signal, rate, 500), 500 * factor)


def labels(signal: np.ndarray, rate: float, _: np.random.Generator) -> tuple[np.ndarray, float]:
    return signal[[0, 2, 1, *range(3, 12)]], rate


def pacemaker(signal: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Spikes of 2 mV and 2 ms, 70 a minute, in leads of different size."""
    signal = resample(signal, rate, 500).copy()
    sizes = rng.uniform(0.3, 1.0, (12, 1)) * rng.choice([-2.0, 2.0], (12, 1))
    signal[:, np.arange(100, signal.shape[1], round(500 * 60 / 70))] += sizes
    return signal, 500.0


def _some_leads(signal: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of one chest electrode, or of all leads."""
    rows = [rng.integers(6, 12)] if rng.random() < 0.5 else range(12)
    return np.where(np.isin(np.arange(12), rows)[:, None], signal + noise, signal)


FAULTS: dict[str, tuple[str, Fault]] = {  # what is done: the kind that should be found
    **{f"exchanged: {name}": ("exchanged_limb_electrodes", exchange(m)) for name, m in LIMB_EXCHANGES.items()},
    "exchanged: left arm and left leg (LA and LL)": (
        "exchanged_limb_electrodes",
        exchange(np.eye(8)[[1, 0, *range(2, 8)]]),
    ),
    **{f"exchanged: {name}": ("exchanged_chest_electrodes", exchange(m)) for name, m in CHEST_EXCHANGES.items()},
    "labels II and III exchanged": ("inconsistent_leads", labels),
    "mains 50 Hz, 0.1 mV, at 500 Hz": ("mains_noise", mains(50)),
    "mains 60 Hz, 0.1 mV, at 500 Hz": ("mains_noise", mains(60)),
    "white noise, 0.15 mV RMS": ("muscle_noise", muscle),
    "baseline wanders by 6 mV": ("baseline_wander", wander),
    "a step of 6 mV": ("loose_electrode", loose),
    "clipped at 1.2 mV after threefold gain": ("saturated_leads", clipping),
    "a chest lead of zeros": ("flat_leads", flat),
    "gain x 10": ("unusual_gain", gain(10)),
    "gain / 10": ("unusual_gain", gain(0.1)),
    "sampling rate told as 2 x": ("wrong_rate", wrong_rate(2)),
    "sampling rate told as 5 x": ("wrong_rate", wrong_rate(5)),
    "sampling rate told as 1/2": ("wrong_rate", wrong_rate(0.5)),
    "sampling rate told as 1/5": ("wrong_rate", wrong_rate(0.2)),
    "pacemaker spikes, at 500 Hz": ("pacemaker_spikes", pacemaker),
}


def fold_nine(folder: Path) -> Iterator[tuple[EcgRecord, bool]]:
    """Recordings of PTB-XL's fold 9, and whether the rhythm is a sinus rhythm."""
    table = next(path for path in (folder / "ptbxl_labels.csv", folder / "ptbxl_database.csv") if path.exists())
    with open(table, newline="") as rows:
        for row in csv.DictReader(rows):
            if row["strat_fold"] == "9":
                codes = row.get("scp_codes", "")
                sinus = any(f"'{code}'" in codes or row.get(code) == "1" for code in RHYTHMS)
                yield read_ecg(folder / f"{row['filename_lr']}.hea"), sinus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptb-xl", type=Path, required=True)
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="folders of .hea files, each a data set")
    parser.add_argument("--records", type=int, default=200, help="of PTB-XL that faults are put into")
    parser.add_argument("--faults", nargs="*", default=[], help="parts of names of faults")
    args = parser.parse_args()

    records = list(fold_nine(args.ptb_xl))
    if not args.faults:
        false_alarms(records, args.others)
    rng = np.random.default_rng(0)
    sinus = [record for record, is_sinus in records if is_sinus]
    chosen = [sinus[i] for i in rng.permutation(len(sinus))[: args.records]]
    rows = []
    for number, (name, (kind, fault)) in enumerate(FAULTS.items()):
        if args.faults and not any(text in name for text in args.faults):
            continue
        rng = np.random.default_rng([0, number])
        found = others = 0
        for record in chosen:
            signal, rate = fault(record.signal, record.sampling_rate, rng)
            got = {finding.kind for finding in check_ecg(replace(record, signal=signal, sampling_rate=rate))}
            found += kind in got
            others += bool(got - {kind, "pacemaker_spikes"})
        rows.append([name, kind, _share(found, len(chosen)), _share(others, len(chosen))])
    title = f"Sensitivity, {len(chosen)} recordings of fold 9 in sinus rhythm"
    print_table(title, ["fault", "kind", "found", "another kind too"], rows)


def false_alarms(records: list[tuple[EcgRecord, bool]], others: list[Path]) -> None:
    alarms = {"PTB-XL, fold 9": [check_ecg(record) for record, _ in records]}
    for folder in others:
        alarms[folder.name] = [check_ecg(read_ecg(path)) for path in sorted(folder.rglob("*.hea"))]
    counts = {name: Counter(finding.kind for found in lists for finding in found) for name, lists in alarms.items()}
    kinds = sorted({kind for kind, _ in FAULTS.values()} | set().union(*counts.values()))
    rows = [[kind, *(_share(counts[name][kind], len(alarms[name])) for name in alarms)] for kind in kinds]
    header = ["found in recordings as they are", *(f"{name} ({len(lists)})" for name, lists in alarms.items())]
    print_table("False alarms, at most", header, rows)


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %"


if __name__ == "__main__":
    main()
