"""Retrieval: the report of an ECG, the ECG of a report, other recordings of the same patient, and echo studies.

    python -m ecgformers.evaluation.retrieval --model DIR --data DIR --output results [--folds 1-7/8/9] [--echo FILE]

Candidates are all recordings of the split (with a report, where reports are looked for).  Recordings whose reports
are equal but for case and spacing are equally right.  For patients, queries are the recordings of patients who have
several in the split, and the recording itself is no candidate; this is all that an encoder without a text tower, such
as an outside one, can do.

FILE, which `training.echo.extract_features` wrote, holds the Gaussians of echo studies; data with a column
`echo_study_id` (`datasets_scripts.mimic_iv_echo`) say which study belongs to an ECG.  An `EchoingEcgModel` then looks
for the study of an ECG among all studies of the split, and for an ECG of a study.

Beside the model the same one with random weights, and chance: the mean over all orders of the candidates.

For research use; not a medical device.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import binom
from torch.nn import functional as F
from transformers import AutoProcessor

from ecgformers.datasets_scripts.echo_gaussians import read_gaussians
from ecgformers.evaluation.encoders import EcgEncoder, HubEncoder, encode_records, load_with_random, with_random
from ecgformers.evaluation.options import RetrievalOptions
from ecgformers.evaluation.records import RecordData, load_records
from ecgformers.evaluation.scoring import embed_texts, similarity
from ecgformers.evaluation.tables import Table
from ecgformers.metrics.retrieval import equal_texts, match_ranks
from ecgformers.metrics.summary import mean_summary
from ecgformers.options import parse, run_command

KS = (1, 5, 10)


def run(options: RetrievalOptions) -> Table:
    data = load_records(options.data, options.folds).part(options.split)
    encoders = load_with_random(options)
    columns = {f"recall@{k}": f"recall_at_{k}" for k in KS}
    table = Table("retrieval", options, data, columns, "recall_at_1", list(columns.values()))
    has_report = np.array([bool(report.strip()) for report in data.reports], dtype=bool)
    encoder = encoders[table.model]
    if not (isinstance(encoder, HubEncoder) and hasattr(encoder.model, "get_text_features")):
        table.notes.append("the model has no text tower: reports were not looked for")
    elif not has_report.any():
        table.notes.append("no recording has a report: reports were not looked for")
    else:
        find_reports(table, data.take(has_report), encoder)
    if options.echo:
        find_echo_studies(table, data, encoder, options.echo)
    find_patients(table, data, encoders)
    table.write()
    return table


def with_embeddings(encoder: HubEncoder, table: Table) -> dict[str, HubEncoder]:
    """The encoder of what texts are compared with, and its baseline."""
    embedding = HubEncoder(encoder.model, encoder.feature_extractor, encoder.device, encoder.model.embedding_names)
    return with_random(embedding, table.model, table.options.seed)


def find_reports(table: Table, data: RecordData, encoder: HubEncoder):
    """Rows for both directions between ECGs and reports."""
    options = table.options
    encoders = with_embeddings(encoder, table)
    data, features, notes = encode_records(encoders, data, options)
    processor = AutoProcessor.from_pretrained(options.model)
    reports = [" ".join(report.lower().split()) for report in data.reports]
    texts, text_of = np.unique(reports, return_inverse=True)
    matches = equal_texts(reports, reports)  # (ECGs, reports)
    table.notes += [f"{len(texts)} different reports of {len(reports)} recordings", *notes]
    for name, each in encoders.items():
        embedded = embed_texts(each.model, processor, {"": texts.tolist()})
        similarities = similarity(each.model, torch.from_numpy(features[name]), embedded).numpy()[:, text_of]
        add_row(table, name, "report of an ECG", match_ranks(similarities, matches), data.rows)
        add_row(table, name, "ECG of a report", match_ranks(similarities.T, matches), data.rows)
    add_chance(table, "report or ECG", matches, data.rows)


def find_echo_studies(table: Table, data: RecordData, encoder: EcgEncoder, echo: Path):
    """Rows for both directions between ECGs and echo studies.

    Raises:
        ValueError: a model without Gaussians, data without echo studies, or a file without theirs.
    """
    options = table.options
    if not (isinstance(encoder, HubEncoder) and "ecg_logvar" in getattr(encoder.model, "embedding_names", ())):
        raise ValueError(f"{options.model} knows no echo studies: --echo needs an EchoingEcgModel")
    if "echo_study_id" not in data.ecgs.column_names:
        raise ValueError(f"{options.data} has no column echo_study_id: build it with datasets_scripts.mimic_iv_echo")
    study_of = np.array(data.ecgs.with_format(None).select(data.rows)["echo_study_id"], dtype=object)
    gaussians = read_gaussians(echo, encoder.model.config.projection_dim)
    has_study = np.array([study in gaussians for study in study_of], dtype=bool)
    if not has_study.any():
        raise ValueError(f"none of {len(data)} recordings has its echo study in {echo}")
    encoders = with_embeddings(encoder, table)
    data, features, notes = encode_records(encoders, data.take(has_study), options)
    study_of = study_of[np.isin(table.data.rows, data.rows)].astype(str)
    studies, first, index = np.unique(study_of, return_index=True, return_inverse=True)
    table.notes += [f"{len(studies)} echo studies of {len(data)} recordings", *notes]
    embedded = torch.from_numpy(np.stack([gaussians[study] for study in studies]))
    matches = index[:, None] == np.arange(len(studies))  # (ECGs, studies)
    for name, each in encoders.items():
        similarities = similarity(each.model, torch.from_numpy(features[name]), embedded).numpy()
        add_row(table, name, "echo study of an ECG", match_ranks(similarities, matches), data.rows)
        add_row(table, name, "ECG of an echo study", match_ranks(similarities.T, matches.T), data.rows[first])
    add_chance(table, "echo study of an ECG", matches, data.rows)
    add_chance(table, "ECG of an echo study", matches.T, data.rows[first])


def find_patients(table: Table, data: RecordData, encoders: Mapping[str, EcgEncoder]):
    """Rows for recordings of the same patient, by the cosine of the features that probes take."""
    data, features, notes = encode_records(encoders, data, table.options)
    table.notes += notes
    same = data.patients[:, None] == data.patients
    queries = np.flatnonzero(same.sum(1) > 1)
    if not len(queries):
        table.notes.append("no patient has two recordings in this split: nobody to recognise")
        return
    others = np.arange(len(data)) != queries[:, None]  # all candidates but the query itself
    shape = (len(queries), len(data) - 1)
    matches = same[queries][others].reshape(shape)
    for name in encoders:
        directions = F.normalize(torch.from_numpy(features[name]), dim=-1).numpy()
        similarities = (directions[queries] @ directions.T)[others].reshape(shape)
        add_row(table, name, "same patient", match_ranks(similarities, matches), data.rows[queries])
    add_chance(table, "same patient", matches, data.rows[queries])


def add_row(table: Table, method: str, protocol: str, ranks: np.ndarray, rows: np.ndarray):
    """Recall@k of queries with these ranks; `rows` are those of their recordings (a study's: the first of it)."""
    add_hits(table, method, protocol, np.stack([ranks <= k for k in KS], axis=1), rows)


def add_chance(table: Table, protocol: str, matches: np.ndarray, rows: np.ndarray):
    """What random orders find: a query with m matches among N candidates misses with C(N - m, k) / C(N, k)."""
    candidates = matches.shape[1]
    ks = np.minimum(KS, candidates)
    misses = binom(candidates - matches.sum(1)[:, None], ks) / binom(candidates, ks)  # (queries, ks)
    add_hits(table, "chance", protocol, 1 - misses, rows)


def add_hits(table: Table, method: str, protocol: str, hits: np.ndarray, rows: np.ndarray):
    """The row of a method from the probability (queries, ks) that each query finds its match."""
    data, options = table.data, table.options
    queries = np.searchsorted(data.rows, rows)
    figures = mean_summary(hits, table.names, data.patients[queries], options.resamples, options.seed)
    values = np.full((len(data), len(KS)), np.nan)
    values[queries] = hits
    table.add_row(method, protocol, figures, values)


def main(arguments: Sequence[str] | None = None) -> Table:
    return run(parse(RetrievalOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
