"""Simulated patients whose ejection fraction leaves a trace in their ECG and in their echo study.

Nothing here is measured.  An ECG has wider QRS complexes and flatter T waves the lower the LVEF, beside heart rate,
axis, amplitudes and noise, which say nothing about it; its report names rhythm and axis, and at times wide complexes,
but no LVEF.  The teacher is an `EchoClipModel` whose text tower puts "... ejection fraction 37 %" on an arc, in the
order of the numbers; the frames of a simulated study lie about the place of its LVEF, as those of a teacher would
whose image tower agrees with its text tower.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ecgformers.datasets_scripts.rows import row_features
from ecgformers.evaluation.tasks import ejection_fraction_prompts
from ecgformers.modeling.configuration_echo_clip import EchoClipConfig
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.losses_echoing_ecg import study_gaussian
from ecgformers.modeling.modeling_echo_clip import EchoClipModel

DIM = 16
SAMPLES = 400  # 4 s at 100 Hz
PROMPTS = [text for template in ejection_fraction_prompts("en") for text in template]
VALUES = list(range(101)) * (len(PROMPTS) // 101)


def arc(lvef: float | np.ndarray) -> np.ndarray:
    """Ejection fractions (...) -> unit vectors (..., DIM) on a third of a circle."""
    angle = np.asarray(lvef) / 100 * 2 * np.pi / 3
    plane = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, 2)))[0]
    return np.stack([np.cos(angle), np.sin(angle)], -1) @ plane.T


def teacher_tokenizer() -> PreTrainedTokenizerFast:
    words = sorted({word for text in PROMPTS for word in text.lower().replace("%", " % ").split()})
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", "<start>", "<end>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    )


@torch.no_grad()
def write_teacher(folder: Path) -> str:
    """A teacher with random weights, but for numbers in the order of their size and a text projection fitted to the
    arc by least squares."""
    tokenizer = teacher_tokenizer()
    text_config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 20,
        "projection_dim": DIM,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    vision_config = {"depths": (1, 1, 1, 1), "hidden_sizes": (4, 4, 4, 4)}
    torch.manual_seed(0)
    teacher = EchoClipModel(EchoClipConfig(text_config=text_config, vision_config=vision_config, projection_dim=DIM))
    for parameter in teacher.text_model.encoder.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[1] ** -0.5)
    tokens = teacher.text_model.get_input_embeddings().weight
    tokens.normal_()
    one, other = torch.linalg.qr(torch.randn(32, 2))[0].T * 32**0.5
    for value in range(101):
        angle = torch.tensor(value / 100 * torch.pi)
        tokens[tokenizer.convert_tokens_to_ids(str(value))] = one * angle.cos() + other * angle.sin()
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    states = teacher.eval().get_text_features(**inputs).pooler_output  # (prompts, 32)
    projection = torch.linalg.lstsq(states, torch.from_numpy(arc(np.array(VALUES))).float()).solution
    teacher.text_projection.weight.copy_(projection.T)
    teacher.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def simulated_lvef(rng: np.random.Generator) -> float:
    """In %: one half of the patients has a weak heart."""
    mean, spread = (32, 8) if rng.random() < 0.5 else (58, 7)
    return float(np.clip(rng.normal(mean, spread), 10, 80))


def simulated_ecg(lvef: float, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """(SAMPLES, 12) microvolts, with consistent limb leads, and the report."""
    weakness = (80 - lvef) / 70  # 0 to 1
    rate = rng.uniform(0.9, 1.8)  # beats a second
    axis = rng.uniform(-1, 1)
    phase = (np.arange(SAMPLES) / 100 * rate + rng.random()) % 1
    width = 0.018 + 0.03 * weakness  # seconds
    qrs = np.exp(-(((phase - 0.3) / rate / width) ** 2) / 2)
    t_wave = np.exp(-(((phase - 0.6) / 0.06) ** 2) / 2) * (0.4 - 0.5 * weakness)
    gains = rng.uniform(0.6, 1.4, 8) * (1 + 0.5 * axis * np.array([1, -1, 0, 0, 0, 0, 0, 0]))
    independent = (qrs + t_wave)[:, None] * gains * 1000 + rng.normal(0, 40, (SAMPLES, 8))
    one, two, chest = independent[:, 0], independent[:, 1], independent[:, 2:]
    limb = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2], 1)
    findings = ["sinus tachycardia" if rate > 1.5 else "sinus rhythm"]
    findings += ["left axis deviation"] if axis > 0.6 else []
    findings += ["wide qrs complexes"] if weakness > 0.6 and rng.random() < 0.5 else []
    return np.concatenate([limb, chest], 1).round().astype(np.int16), ". ".join(findings) + "."


def simulated_study(lvef: float, rng: np.random.Generator, frames: int = 20) -> tuple[list[float], list[float]]:
    """Mean and log-variance (DIM,) of a study's frames, which lie about their study, and that about its LVEF."""
    embeds = arc(lvef) + rng.normal(0, 0.1, DIM) + rng.normal(0, 0.15, (frames, DIM))
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    mean, logvar = study_gaussian(torch.from_numpy(embeds))
    return mean.float().tolist(), logvar.float().tolist()


def write_pairs(folder: Path, patients: int = 600, seed: int = 0) -> tuple[str, str]:
    """A data set of ECGs with reports, LVEF and echo studies, and the file of the studies' Gaussians.

    So many patients for training, half as many for validation and for test each; every fifth has two ECGs and one
    study.
    """
    rng = np.random.default_rng(seed)
    studies = []
    for split, count in {"train": patients, "validation": patients // 2, "test": patients // 2}.items():
        rows = []
        for patient in range(count):
            lvef = simulated_lvef(rng)
            study_id = f"simulated-study-{split}-{patient}"
            studies.append((study_id, *simulated_study(lvef, rng)))
            for ecg in range(1 if patient % 5 else 2):
                signal, report = simulated_ecg(lvef, rng)
                rows.append(
                    {
                        "record_id": f"simulated-{split}-{patient}-{ecg}",
                        "patient_id": f"simulated-{split}-{patient}",
                        "signal": signal,
                        "gain": [1000.0] * 12,
                        "baseline": [0] * 12,
                        "units": ["mV"] * 12,
                        "lead_names": list(STANDARD_LEADS),
                        "sampling_rate": 100.0,
                        "report": report,
                        "statements": None,
                        "age": 60.0,
                        "sex": "female",
                        "fold": None,
                        "split": split,
                        "source": "simulated",
                        "measurements": {"lvef": lvef},
                        "echo_study_id": study_id,
                    }
                )
        features = row_features(12, "int16")
        features["measurements"] = {"lvef": Value("float32")}
        features["echo_study_id"] = Value("string")
        folder.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")
    file = folder.parent / "simulated_studies.parquet"
    columns = dict(zip(("study_id", "echo_embeds", "echo_logvar"), map(list, zip(*studies, strict=True)), strict=True))
    pq.write_table(pa.table(columns), file)
    return str(folder), str(file)
