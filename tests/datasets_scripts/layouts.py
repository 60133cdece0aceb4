"""Small data sets in their publishers' layouts, with ECGs whose limb leads obey Einthoven and Goldberger exactly."""

import csv
import gzip
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
MIMIC_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")


def ecg(seed: int, samples: int = 200, leads: Sequence[str] = LEADS) -> np.ndarray:
    """(samples, leads) int16: every lead another one, even numbers in I and II so that the derived leads are exact."""
    random = np.random.default_rng(seed)
    walk = random.integers(-8, 9, (samples, 8)).cumsum(axis=0) * 2  # I, II, V1 to V6
    i, ii = walk[:, 0], walk[:, 1]
    limb = {"I": i, "II": ii, "III": ii - i, "aVR": -(i + ii) // 2, "aVL": i - ii // 2, "aVF": ii - i // 2}
    chest = {f"V{number}": walk[:, number + 1] + 1000 * number for number in range(1, 7)}
    return np.stack([(limb | chest | {"X": i, "Y": ii, "Z": ii - i})[lead] for lead in leads], axis=1).astype(np.int16)


def write_wfdb(
    path: Path,
    signal: np.ndarray,
    leads: Sequence[str] = LEADS,
    rate: int = 500,
    gain: str = "1000.0(0)/mV",
    comments: Iterable[str] = (),
    extension: str = "dat",
) -> Path:
    """A WFDB record of format 16; "mat" puts 24 bytes of MATLAB header before the samples, as the challenges do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    offset = 24 if extension == "mat" else 0
    path.with_suffix(f".{extension}").write_bytes(b"\0" * offset + signal.astype("<i2").tobytes())
    form = "16+24" if offset else "16"
    checksums = signal.astype(np.int64).sum(axis=0).astype(np.int16)
    lines = [f"{path.name} {len(leads)} {rate} {len(signal)}"]
    lines += [
        f"{path.name}.{extension} {form} {gain} 16 0 {signal[0, lead]} {checksums[lead]} 0 {name}"
        for lead, name in enumerate(leads)
    ]
    path.with_suffix(".hea").write_text("\n".join([*lines, *(f"#{comment}" for comment in comments)]) + "\n")
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def ptb_xl(folder: Path, records: int = 20, samples: int = 100, rate: int = 100) -> dict[str, np.ndarray]:
    """PTB-XL: `records` ECGs in folds 1 to 10, two of a patient; their signals by record id."""
    kind = {100: "lr", 500: "hr"}[rate]
    rows, signals = [], {}
    for number in range(1, records + 1):
        name = f"records{rate}/00000/{number:05d}_{kind}"
        signals[str(number)] = ecg(number, samples)
        write_wfdb(folder / name, signals[str(number)], [lead.upper() for lead in LEADS], rate)
        rows.append(
            {
                "ecg_id": number,
                "patient_id": f"{1000 + (number - 1) // 2}.0",
                "age": {1: "300.0", 2: ""}.get(number, "56.0"),
                "sex": number % 2,
                "report": f"sinusrhythmus, nummer {number}",
                "scp_codes": "{'NORM': 100.0, 'SR': 0.0}" if number % 3 else "{'IMI': 50.0}",
                "strat_fold": (number - 1) // 2 % 10 + 1,
                "filename_lr": name.replace(f"records{rate}", "records100").replace("_hr", "_lr"),
                "filename_hr": name.replace(f"records{rate}", "records500").replace("_lr", "_hr"),
            }
        )
    write_csv(folder / "ptbxl_database.csv", rows)
    return signals


def challenge(
    folder: Path, names: Sequence[str], codes: Sequence[str], gain: str = "1000/mV"
) -> dict[str, np.ndarray]:
    """One database of the PhysioNet/CinC Challenge 2021, recordings of different lengths."""
    signals = {}
    for number, (name, code) in enumerate(zip(names, codes, strict=True)):
        signals[name] = ecg(number, 200 + 50 * number)
        comments = [
            f"Age: {60 + number if number else 'NaN'}",
            f"Sex: {'Female' if number % 2 else 'Male'}",
            f"Dx: {code}",
        ]
        path = folder / f"g{number // 2 + 1}" / name
        write_wfdb(path, signals[name], gain=gain, comments=[*comments, "Rx: Unknown"], extension="mat")
    return signals


def code_tracing(signal: np.ndarray) -> np.ndarray:
    """(4096, 12) float32 millivolts, filled up with zeros on both sides."""
    tracing = np.zeros((4096, 12), np.float32)
    start = (4096 - len(signal)) // 2
    tracing[start : start + len(signal)] = signal / np.float32(1000)
    return tracing


def code_15(folder: Path) -> dict[str, np.ndarray]:
    """CODE-15%: three parts, of which the last is not there, and the empty last line each part has."""
    folder.mkdir(parents=True, exist_ok=True)
    signals, rows = {}, []
    for number, exam_id in enumerate((501, 502, 503, 504, 505)):
        signals[str(exam_id)] = ecg(exam_id, 2800 if number % 2 else 4000)
        labels = {name: str(number == place) for place, name in enumerate(("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF"))}
        rows.append(
            {"exam_id": exam_id, "age": 40 + number, "is_male": bool(number % 2), "nn_predicted_age": 41.5}
            | labels
            | {"patient_id": 70 + number, "death": "False", "timey": 1.5, "normal_ecg": "False"}
            | {"trace_file": f"exams_part{number // 2}.hdf5"}
        )
    for part in (0, 1):
        exams = [row["exam_id"] for row in rows[2 * part : 2 * part + 2]][::-1]  # not in the order of the table
        with h5py.File(folder / f"exams_part{part}.hdf5", "w") as file:
            file["exam_id"] = np.array([*exams, 0])
            tracings = [code_tracing(signals[str(exam)]) for exam in exams]
            file["tracings"] = np.stack([*tracings, np.zeros((4096, 12), np.float32)])
    write_csv(folder / "exams.csv", rows)
    return signals


def code_test(folder: Path) -> list[np.ndarray]:
    """CODE-test: three tracings with their attributes and the gold standard."""
    folder.mkdir(parents=True, exist_ok=True)
    signals = [ecg(number, 2800 if number else 4000) for number in range(3)]
    with h5py.File(folder / "ecg_tracings.hdf5", "w") as file:
        file["tracings"] = np.stack([code_tracing(signal) for signal in signals])
    write_csv(folder / "attributes.csv", [{"age": 70 + n, "sex": "MFM"[n]} for n in range(3)])
    gold = [dict.fromkeys(("1dAVb", "RBBB", "LBBB", "SB", "AF", "ST"), 0) for _ in range(3)]
    gold[1]["AF"] = 1
    write_csv(folder / "annotations" / "gold_standard.csv", gold)
    return signals


def mimic_iv_ecg(folder: Path) -> dict[str, np.ndarray]:
    """MIMIC-IV-ECG: two subjects, five studies, of which one has a report of two words."""
    studies = [
        (
            10000032,
            40689238,
            "2180-07-23 08:44:00",
            ["Sinus rhythm", "Possible right atrial abnormality", "", "Borderline EKG"],
        ),
        (10000032, 44458630, "2180-07-23 09:54:00", ["Sinus rhythm", "*** Abnormal ECG ***"]),
        (10000032, 49036311, "2180-08-06 09:07:00", ["Sinus rhythm"]),
        (10000117, 45090959, "2181-03-04 17:14:00", ["Atrial fibrillation with PVC(s).", "= = Low QRS voltages"]),
        (10000117, 48446569, "2183-09-18 13:52:00", ["Sinus bradycardia", "", "Normal ECG except for rate"]),
    ]
    signals, records, measurements = {}, [], []
    for number, (subject, study, time, report) in enumerate(studies):
        path = f"files/p{str(subject)[:4]}/p{subject}/s{study}/{study}"
        signals[str(study)] = ecg(study, leads=MIMIC_LEADS)
        write_wfdb(folder / path, signals[str(study)], MIMIC_LEADS, gain="200.0(0)/mV")
        ids = {"subject_id": subject, "study_id": study}
        records.append({**ids, "file_name": study, "ecg_time": time, "path": path})
        lines = {f"report_{line}": report[line] if line < len(report) else "" for line in range(18)}
        measurements.append({**ids, "cart_id": 6848296 + number, "ecg_time": time, **lines, "rr_interval": 659})
    write_csv(folder / "record_list.csv", records)
    write_csv(folder / "machine_measurements.csv", measurements)
    return signals


def mimic_iv_echo(folder: Path) -> None:
    """MIMIC-IV-ECHO 1.0 for the subjects of `mimic_iv_ecg`: a DICOM study and measurements without one."""
    write_csv(
        folder / "echo-study-list.csv",
        [
            {
                "subject_id": 10000032,
                "study_id": 90000001,
                "study_datetime": "2180-07-23 18:00:00",
                "note_id": "",
                "note_seq": "",
                "note_charttime": "",
                "measurement_id": 555,
                "measurement_datetime": "2180-07-23 18:30:00",
            }
        ],
    )
    cines = [f"files/p10/p10000032/s90000001/90000001_{number:04d}.dcm" for number in (1, 2)]
    times = {"acquisition_datetime": "2180-07-23 18:05:00"}
    records = [{"subject_id": 10000032, "study_id": 90000001, **times, "dicom_filepath": cine} for cine in cines]
    write_csv(folder / "echo-record-list.csv", records)
    first = (10000032, 555, "2180-07-23 18:30:00")
    second = (10000117, 777, "2181-03-04 12:14:00")
    lines = [
        (*first, "lvef", "Left ventricular ejection fraction", "35", "%"),
        (*first, "lvedd", "LV end-diastolic diameter", "6.1", "cm"),
        (*first, "tapse", "TAPSE", ">2.0", "cm"),
        (*first, "mr_severity", "Mitral regurgitation", "Mild", ""),
        (*second, "lvef", "Left ventricular ejection fraction", "60", "%"),
    ]
    names = ("subject_id", "measurement_id", "measurement_datetime")
    rest = ("measurement", "measurement_description", "result", "unit")
    rows = [dict(zip((*names, *rest), line, strict=True)) | {"test_type": "tte"} for line in lines]
    write_csv(folder / "structured-measurement.csv.gz", rows)


def music(folder: Path) -> dict[str, np.ndarray]:
    """MUSIC: four patients, of whom one has no high-resolution ECG."""
    rows, signals = [], {}
    for number in range(1, 5):
        patient = f"P{number:04d}"
        available = number != 3
        if available:
            signals[f"{patient}_H"] = ecg(number, 3000, ("X", "Y", "Z"))
            path = folder / "High-resolution_ECG" / f"{patient}_H"
            write_wfdb(path, signals[f"{patient}_H"], ("X", "Y", "Z"), rate=1000, gain="200/mV")
        rows.append(
            {
                "Patient ID": patient,
                "Cause of death": 0,
                "Age": ">89" if number == 2 else "64",
                "Gender (male=1)": number % 2,
                "LVEF (%)": "34,5" if number != 4 else "",
                "Left atrial size (mm)": "45",
                "Left ventricle end-diastolic diameter (mm)": "61",
                "Left ventricle end-systolic diameter (mm)": "50",
                "Right ventricle end-diastolic diameter (mm)": "30",
                "Septal thickness (mm)": "11",
                "Left ventricular posterior wall thickness (mm)": "10,5",
                "Mitral flow pattern": 1,
                "Hig-resolution ECG available": int(available),
                "ECG rhythm ": 0,
            }
        )
    write_csv(folder / "subject-info.csv", rows, delimiter=";")
    return signals
