"""Report generation: BLEU and ROUGE-L of written reports, beside those of always writing the most frequent one.

    python -m ecgformers.evaluation.report_generation --model DIR --data DIR --output results \\
        [--folds 1-7/8/9] [--limit 500] [--max-new-tokens 64] [--num-beams 1]

Only recordings with a report take part.  The baselines are the most frequent report of the training split for
everybody, and the same model with random weights.  Words count without case and punctuation.  Every written report
goes to OUTPUT/report_generation_MODEL.jsonl, beside the true one.

For research use; not a medical device.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.evaluation.encoders import leave_out_refused, quality_warnings_together
from ecgformers.evaluation.options import ReportGenerationOptions
from ecgformers.evaluation.records import RecordData, load_records
from ecgformers.evaluation.tables import Table
from ecgformers.metrics.bootstrap import counts_for_intervals
from ecgformers.metrics.summary import as_figure, mean_summary
from ecgformers.metrics.text_overlap import bleu, most_frequent_text, rouge_l
from ecgformers.options import parse, run_command

COLUMNS = {"BLEU-1": "bleu_1", "BLEU-2": "bleu_2", "BLEU-3": "bleu_3", "BLEU-4": "bleu_4", "ROUGE-L": "rouge_l"}


def run(options: ReportGenerationOptions) -> Table:
    data = load_records(options.data, options.folds)
    has_report = np.array([bool(report.strip()) for report in data.reports], dtype=bool)
    data = data.take(has_report)
    training_reports, test = data.part("train").reports, data.part(options.split)
    if options.limit is not None and options.limit < len(test):
        test = test.take(np.sort(np.random.default_rng(options.seed).permutation(len(test))[: options.limit]))

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForSpeechSeq2Seq.from_pretrained(options.model)
    processor = AutoProcessor.from_pretrained(options.model)
    test, notes = leave_out_refused(test, processor.feature_extractor)
    torch.manual_seed(options.seed)
    models = {
        options.model_name: model,
        "random model": AutoModelForSpeechSeq2Seq.from_config(model.config),
    }
    frequent = most_frequent_text(training_reports)
    written = {name: write_reports(each.to(device).eval(), processor, test, options) for name, each in models.items()}
    written["most frequent report"] = [frequent] * len(test)

    table = Table("report_generation", options, test, COLUMNS, "rouge_l", ["rouge_l"], notes=notes)
    table.notes.append(f"the most frequent of {len(training_reports)} training reports: {frequent!r}")
    search = "greedy" if options.num_beams == 1 else f"{options.num_beams} beams"
    for name, texts in written.items():
        protocol = "for everybody" if name == "most frequent report" else search
        table.add_row(name, protocol, *overlap(texts, test, options))
    table.write()
    with (options.output / f"{table.name}.jsonl").open("w", encoding="utf-8") as file:
        for index, (record_id, report) in enumerate(zip(test.record_ids, test.reports, strict=True)):
            line = {"record_id": str(record_id), "report": report, **{name: written[name][index] for name in models}}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return table


@torch.inference_mode()
def write_reports(model: Any, processor: Any, data: RecordData, options: ReportGenerationOptions) -> list[str]:
    """The model's report of every record."""
    reports: list[str] = []
    with quality_warnings_together(), tqdm(total=len(data), desc="Writing reports", unit=" ECGs", delay=2) as bar:
        for start in range(0, len(data), options.batch_size):
            rows = data.rows[start : start + options.batch_size].tolist()
            inputs = processor([row_to_record(data.ecgs[row]) for row in rows], return_tensors="pt").to(model.device)
            ids = model.generate(**inputs, max_new_tokens=options.max_new_tokens, num_beams=options.num_beams)
            reports += processor.batch_decode(ids, skip_special_tokens=True)
            bar.update(len(rows))
    return reports


def overlap(texts: list[str], data: RecordData, options: ReportGenerationOptions) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of a row of the table, and ROUGE-L of every record (n, 1)."""
    truth = data.reports
    single = rouge_l(texts, truth)[:, None]
    figures = mean_summary(single, ["rouge_l"], data.patients, options.resamples, options.seed)
    counts = counts_for_intervals(data.patients, options.resamples, options.seed)
    for order in (1, 2, 3, 4):
        resampled = None if counts is None else bleu(texts, truth, order, counts)
        figures[f"bleu_{order}"] = as_figure(bleu(texts, truth, order).item(), resampled)
    return figures, single


def main(arguments: Sequence[str] | None = None) -> Table:
    return run(parse(ReportGenerationOptions, __doc__, arguments))


if __name__ == "__main__":
    run_command(main)
