"""Retrieval: the report of an ECG, the ECG of a report, and other recordings of the same patient.

    python -m ecgformers.training.retrieval --model DIR --data DIR --output results [--folds 1-7/8/9]

Candidates are all recordings of the split (with a report, where reports are looked for).  Recordings whose reports
are equal but for case and spacing are equally right.  For patients, queries are the recordings of patients who have
several in the split, and the recording itself is no candidate; this is all that a model without a text tower can do.
Beside the model the same one with random weights, and chance: the mean over all orders of the candidates.

For research use; not a medical device.
"""

import argparse
from typing import Any

import numpy as np
import torch
from scipy.special import binom
from torch.nn import functional as F
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor

from ecgformers.metrics.bootstrap import resample_counts
from ecgformers.metrics.retrieval import equal_texts, match_ranks
from ecgformers.metrics.summary import as_figure
from ecgformers.training.encoders import HubEncoder, encode_records, with_random
from ecgformers.training.evaluation import RecordData, Table, argument_parser, load_records, run
from ecgformers.training.zero_shot import embed_texts, embedding_names, similarity

KS = (1, 5, 10)


def main(arguments: list[str] | None = None) -> Table:
    options = argument_parser(__doc__, task=False).parse_args(arguments)
    data = load_records(options.data, options.folds).part(options.split)
    model = AutoModel.from_pretrained(options.model)
    extractor = AutoFeatureExtractor.from_pretrained(options.model)
    columns = {f"recall@{k}": f"recall_at_{k}" for k in KS}
    table = Table("retrieval", options, columns, "recall_at_1", notes=list(data.notes))
    has_report = np.array([bool(report.strip()) for report in data.reports], dtype=bool)
    if hasattr(model, "get_text_features") and has_report.any():
        find_reports(table, data.take(has_report), model, extractor)
    find_patients(table, data, model, extractor)
    table.write()
    return table


def find_reports(table: Table, data: RecordData, model: Any, extractor: Any):
    """Rows for both directions between ECGs and reports."""
    options = table.options
    encoder = HubEncoder(model, extractor, options.device, embedding_names(model))
    encoders = with_random(encoder, table.model, options.seed)
    data, features, notes = encode_records(encoders, data, options)
    processor = AutoProcessor.from_pretrained(options.model)
    reports = [" ".join(report.lower().split()) for report in data.reports]
    texts, text_of = np.unique(reports, return_inverse=True)
    matches = equal_texts(reports, reports)  # (ECGs, reports)
    table.notes += [f"{len(texts)} different reports of {len(reports)} recordings", *notes]
    for name, each in encoders.items():
        embedded = embed_texts(each.model, processor, {"": texts.tolist()})
        similarities = similarity(each.model, torch.from_numpy(features[name]), embedded).numpy()[:, text_of]
        add_row(table, name, "report of an ECG", match_ranks(similarities, matches), data.patients)
        add_row(table, name, "ECG of a report", match_ranks(similarities.T, matches), data.patients)
    add_chance(table, "report or ECG", matches.sum(1), len(reports), data.patients)


def find_patients(table: Table, data: RecordData, model: Any, extractor: Any):
    """Rows for recordings of the same patient, by the cosine of the features that probes take."""
    options = table.options
    encoders = with_random(HubEncoder(model, extractor, options.device), table.model, options.seed)
    data, features, notes = encode_records(encoders, data, options)
    table.notes += notes
    same = data.patients[:, None] == data.patients
    queries = np.flatnonzero(same.sum(1) > 1)
    if not len(queries):
        table.notes.append("no patient has two recordings in this split: nobody to recognise")
        return
    others = np.arange(len(data)) != queries[:, None]  # all candidates but the query itself
    shape = (len(queries), len(data) - 1)
    matches, patients = same[queries][others].reshape(shape), data.patients[queries]
    for name in encoders:
        directions = F.normalize(torch.from_numpy(features[name]), dim=-1).numpy()
        similarities = (directions[queries] @ directions.T)[others].reshape(shape)
        add_row(table, name, "same patient", match_ranks(similarities, matches), patients)
    add_chance(table, "same patient", matches.sum(1), shape[1], patients)


def add_row(table: Table, method: str, protocol: str, ranks: np.ndarray, patients: np.ndarray):
    """Recall@k of the queries with these ranks."""
    hits = {f"recall_at_{k}": (ranks <= k).astype(float) for k in KS}
    table.add_row(method, protocol, mean_figures(hits, patients, table.options))


def add_chance(table: Table, protocol: str, matches: np.ndarray, candidates: int, patients: np.ndarray):
    """What random orders find: a query with m matches among N candidates misses with C(N - m, k) / C(N, k)."""

    def misses(k: int) -> np.ndarray:
        return binom(candidates - matches, k) / binom(candidates, k)

    hits = {f"recall_at_{k}": 1 - misses(min(k, candidates)) for k in KS}
    table.add_row("chance", protocol, mean_figures(hits, patients, table.options))


def mean_figures(values: dict[str, np.ndarray], patients: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Means over queries, with intervals where there are two patients or more."""
    count = len(np.unique(patients))
    counts = resample_counts(patients, options.resamples, options.seed) if options.resamples and count > 1 else None
    figures: dict[str, Any] = {"records": len(patients), "patients": count}
    for name, value in values.items():
        resampled = None if counts is None else (counts @ value) / counts.sum(-1)
        figures[name] = as_figure(value.mean(), resampled)
    return figures


if __name__ == "__main__":
    run(main)
