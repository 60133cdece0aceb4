"""Read a real 12-lead ECG, say what it is, run the models on it, and draw it.

    python -m ecgformers.spaces.demo [--ecg FILE] [--models DIR] [--output DIR]

Without --ecg it takes the 12-lead DICOM waveform that pydicom ships.  The models are those found in the sub-folders of
--models; when there is none, untrained ones show the way from a recording to embeddings.  Needs no network.
For research use; not a medical device.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing here needs a hub
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from pydicom.data import get_testdata_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.utils.logging import disable_progress_bar

from ecgformers.evaluation.tasks import TASKS, prompts
from ecgformers.modeling.configuration_echoing_ecg import EchoingEcgConfig
from ecgformers.modeling.configuration_melp import MelpConfig
from ecgformers.modeling.converting.checkpoint import MELP_LEADS
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel
from ecgformers.modeling.modeling_melp import MelpModel
from ecgformers.modeling.pipelines_ecg import EcgClassificationPipeline, EcgToTextPipeline, tasks_of
from ecgformers.modeling.plotting_ecg import plot_ecg
from ecgformers.modeling.processing_ecg import EcgProcessor
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgRecord
from ecgformers.modeling.rhythm_ecg import heart_rate
from ecgformers.modeling.tokenization_melp import SPECIAL_TOKENS, as_report_tokenizer, special_token_settings
from ecgformers.recordings import described

SUPERCLASSES = {
    "NORM": "normal ECG",
    "MI": "myocardial infarction",
    "STTC": "ST-T changes",
    "CD": "conduction disturbance",
    "HYP": "hypertrophy",
}


def describe(record: EcgRecord) -> float | None:
    """Print what was read; returns the heart rate."""
    rate = heart_rate(record)
    problems = EcgFeatureExtractor(normalization="min_max").check_ecg(record)
    print(f"Read {record.source}")
    print("\n".join(described(record, rate)))
    print("  problems    " + ("\n              ".join(map(str, problems)) if problems else "none found"))
    return rate


def save_untrained(folder: Path):
    """Small models of both kinds with random weights, as folders like those on the Hub."""
    torch.manual_seed(0)
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS.values(), ".", "sinus", "rhythm"])}
    words = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer = as_report_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL_TOKENS))
    text_config: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }

    ids: dict[str, Any] = special_token_settings(tokenizer)
    ecg_config = {"num_hidden_layers": 2, "caption_dim": 64}
    MelpModel(MelpConfig(ecg_config=ecg_config, text_config=text_config, **ids)).save_pretrained(folder / "melp")
    extractor = EcgFeatureExtractor(
        lead_names=MELP_LEADS, sampling_rate=500, num_samples=5000, normalization="min_max"
    )
    EcgProcessor(extractor, tokenizer).save_pretrained(folder / "melp")

    sizes: dict[str, Any] = {"stem_size": 24, "hidden_sizes": (32, 48, 64, 96), "depths": (1, 1, 1, 1)}
    EchoingEcgModel(EchoingEcgConfig(text_config=text_config, **sizes)).save_pretrained(folder / "echoing-ecg")
    extractor = EcgFeatureExtractor(sampling_rate=100, num_samples=1000, bandpass=(0.5, 40.0), normalization="none")
    EcgProcessor(extractor, tokenizer).save_pretrained(folder / "echoing-ecg")


def show_embedding(folder: Path, record: EcgRecord):
    """Shapes and the first numbers of a model's ECG embedding."""
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(record, return_tensors="pt")
    start = time.perf_counter()
    with torch.no_grad():
        output = model.get_ecg_features(**inputs)
    milliseconds = 1000 * (time.perf_counter() - start)
    embedding = output.ecg_embeds[0]
    print(f"  {type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters, {milliseconds:.0f} ms")
    print(
        f"  input_values {tuple(inputs['input_values'].shape)} -> ecg_embeds {tuple(output.ecg_embeds.shape)}", end=" "
    )
    print(f"[{', '.join(f'{value:.3f}' for value in embedding[:4])}, ...]")
    if "ecg_logvar" in output:
        print(f"  uncertainty (sum of the variances) {float(output.ecg_logvar[0].exp().sum()):.3f}")


def show_findings(folder: Path, record: EcgRecord):
    """Zero-shot findings, and a generated report when the model writes."""
    texts = prompts(TASKS["ptbxl_super"])
    classify = pipeline("zero-shot-ecg-classification", model=str(folder), device="cpu")
    shares = classify(record, candidate_labels={SUPERCLASSES[name]: own for name, own in texts.items()})
    print("  zero-shot     " + "  ".join(f"{entry['label']} {entry['score']:.2f}" for entry in shares))
    if EcgToTextPipeline.task_name in tasks_of(classify.model.config):
        write = pipeline("ecg-to-text", model=str(folder), device="cpu")
        print(f"  report        {write(record, num_beams=4)[0]['generated_text']}")
    print(
        "  Shares say which of these texts fits best, not whether a finding is present; the report is generated text."
    )


def show_classes(folder: Path, record: EcgRecord):
    """What a trained classifier finds: labels whose probability reaches their threshold, and groups of labels."""
    classifier = pipeline("ecg-classification", model=str(folder), device="cpu")
    config = classifier.model.config
    thresholds = getattr(config, "thresholds", None) or [0.5] * config.num_labels
    least = {config.id2label[index]: threshold for index, threshold in enumerate(thresholds)}
    found = [entry for entry in classifier(record) if entry["score"] >= least[entry["label"]]]
    print("  findings      " + ("  ".join(f"{entry['label']} {entry['score']:.2f}" for entry in found) or "none"))
    for level in getattr(config, "groups", None) or ():
        groups = classifier(record, level=level, top_k=5)
        print(f"  {level:<13} " + "  ".join(f"{entry['label']} {entry['score']:.2f}" for entry in groups))
    print("  Scores are probabilities, calibrated on recordings like those of the training data.")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ecg", help="any recording that read_ecg reads")
    parser.add_argument("--models", type=Path, default=Path("model_cards"), help="folder of model folders")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the picture")
    args = parser.parse_args(arguments)
    disable_progress_bar()

    record = read_ecg(args.ecg or get_testdata_file("waveform_ecg.dcm", download=False))
    rate = describe(record)

    args.output.mkdir(parents=True, exist_ok=True)
    picture = args.output / "ecg.png"
    plot_ecg(record, heart_rate=rate).savefig(picture, dpi=150)
    print(f"Drew {picture} (25 mm/s, 10 mm/mV)\n")

    trained = sorted(path.parent for path in args.models.glob("*/config.json"))
    for folder in trained:
        print(f"{folder.name}:")
        if EcgClassificationPipeline.task_name in tasks_of(AutoConfig.from_pretrained(folder)):
            show_classes(folder, record)
        else:
            show_embedding(folder, record)
            show_findings(folder, record)
    if not trained:
        print(f"No trained model in {args.models}: these weights are random, and their numbers mean nothing.")
        with tempfile.TemporaryDirectory() as folder:
            save_untrained(Path(folder))
            for untrained in sorted(Path(folder).iterdir()):
                print(f"{untrained.name}, untrained:")
                show_embedding(untrained, record)
    print("\nFor research use; not a medical device.")


if __name__ == "__main__":
    main()
