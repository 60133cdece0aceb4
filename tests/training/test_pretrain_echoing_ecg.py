"""EchoingECG's recipe on *simulated* pairs of ECG and echo study (simulated_echo.py): what the echo studies add to a
student, exact resume, and the sampler over the two data sets."""

import json
from pathlib import Path

import numpy as np
import pytest
import simulated_echo
import torch
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ecgformers.datasets_scripts.rows import row_to_record
from ecgformers.evaluation import zero_shot_value
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.training import loop, pretrain_echoing_ecg
from ecgformers.training.loading import epoch_batches
from ecgformers.training.mixing import batch_order, mix_batches
from ecgformers.training.pretrain_echoing_ecg import EchoingEcgSettings, lead_statistics
from ecgformers.training.pretrain_text import train_tokenizer
from ecgformers.training.settings import parse_settings

PROCESSOR = {"sampling_rate": 100, "num_samples": simulated_echo.SAMPLES, "normalization": "standard"}
MODEL = {
    "text_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    },
    "stem_size": 8,
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "projection_dim": simulated_echo.DIM,
    "pooling_size": 8,
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> dict[str, str]:
    """Where the simulated data, studies and teacher are, and a tokenizer that knows reports and prompts."""
    root = tmp_path_factory.mktemp("simulated")
    data, studies = simulated_echo.write_pairs(root / "data", patients=480)
    texts = [*load_dataset(data, split="train")["report"], *simulated_echo.PROMPTS]
    train_tokenizer(texts, 400).save_pretrained(root / "tokenizer")
    teacher = simulated_echo.write_teacher(root / "teacher")
    return {"root": str(root), "data": data, "studies": studies, "teacher": teacher}


def pretrain(simulated: dict[str, str], name: str, *overrides: str, with_echo: bool = True) -> Path:
    root = Path(simulated["root"])
    settings = {
        "data": [simulated["data"]],
        "tokenizer": str(root / "tokenizer"),
        "processor": PROCESSOR,
        "model": MODEL,
        "cache": str(root / "cache"),
        "validation": {"lvef_below_40": simulated["data"]},
        "augmentation": {"lead_drop": 0.0},
        "loop": {
            "output": str(root / name),
            "epochs": 5,
            "batch_size": 32,
            "learning_rate": 3e-3,
            "weight_decay": 0.01,
            "betas": [0.9, 0.999],
            "warmup_share": 0.03,
            "log_steps": 5,
        },
    }
    if with_echo:
        settings |= {"echo": [simulated["data"]], "echo_features": simulated["studies"]}
    config = root / f"{name}.json"  # JSON is YAML
    config.write_text(json.dumps({"echoing_ecg": settings}))
    pretrain_echoing_ecg.main(["--config", str(config), *overrides])
    return root / name


@pytest.fixture(scope="module")
def student(simulated) -> Path:
    return pretrain(simulated, "student")


def evaluate(simulated: dict[str, str], run: Path, *options: str) -> dict:
    """The model's row on held-out simulated patients."""
    arguments = ["--model", str(run / "best"), "--data", simulated["data"], "--output", str(run / "results")]
    return zero_shot_value.main([*arguments, "--language", "en", "--resamples", "0", *options]).rows[0]


def test_echo_studies_teach_what_reports_do_not_say(simulated, student):
    teacher = ["--teacher", simulated["teacher"]]
    taught = evaluate(simulated, student, *teacher)
    text_only = pretrain(simulated, "text-only", "loop.epochs=10", with_echo=False)  # as many steps
    others = [evaluate(simulated, text_only), evaluate(simulated, text_only, *teacher)]
    best_other = max(row["balanced_accuracy_40"]["value"] for row in others)
    assert taught["records"] >= 240
    assert taught["balanced_accuracy_40"]["value"] > best_other + 0.1
    assert taught["rank_correlation"]["value"] > 0.6


def test_figures_of_both_kinds_of_batches_are_logged_apart(student):
    lines = [json.loads(line) for line in (student / "log.jsonl").read_text().splitlines()]
    for name in ("match_loss", "echo_match_loss"):
        values = [line[name] for line in lines if name in line]
        assert values[-1] < values[0]
    validated = [line for line in lines if "validation_echo" in line]
    assert len(validated) == 5 and validated[-1]["validation_echo"] > 0.6
    both = validated[-1]["validation_echo"], validated[-1]["validation_lvef_below_40"]
    assert validated[-1]["validation_auroc"] == pytest.approx(np.mean(both))


def test_the_saved_processor_standardises_by_the_training_data(simulated, student):
    extractor = EcgFeatureExtractor.from_pretrained(student / "best")
    rows = load_dataset(simulated["data"], split="train")
    signals = np.concatenate([row_to_record(row).signal for row in rows.with_format("numpy")], axis=1)
    np.testing.assert_allclose(extractor.lead_means, signals.mean(1), atol=1e-6)
    np.testing.assert_allclose(extractor.lead_scales, signals.std(1), rtol=1e-5)
    plain = EcgFeatureExtractor(**(PROCESSOR | {"normalization": "none"}))
    means, scales = lead_statistics(rows, plain, records=100, seed=1)
    np.testing.assert_allclose(scales, extractor.lead_scales, rtol=0.2)
    assert means != extractor.lead_means


def test_a_run_cut_off_between_the_data_sets_goes_on_to_the_same_weights(simulated, monkeypatch):
    short = ["loop.max_steps=20", "loop.save_steps=7"]
    whole = pretrain(simulated, "whole", *short)
    save = loop.save_checkpoint

    def save_and_die(accelerator, output, step, keep):
        save(accelerator, output, step, keep)
        if step == 14:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save_checkpoint", save_and_die)
        pretrain(simulated, "cut", *short)
    cut = pretrain(simulated, "cut", *short, "loop.resume=true")
    last = max(path.name for path in whole.glob("checkpoint-*"))
    assert last > "checkpoint-00000014"
    expected, found = (load_file(run / last / "model.safetensors") for run in (whole, cut))
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_studies_without_ecgs_are_refused(simulated, tmp_path):
    other = simulated_echo.write_pairs(tmp_path / "data", patients=5)[1]
    studies = load_dataset("parquet", data_files=other, split="train")
    renamed = studies.map(lambda row: {"study_id": f"other-{row['study_id']}"})
    renamed.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="none of the 576 ECGs has one of the 9 studies"):
        pretrain(simulated, "refused", f"echo_features={tmp_path / 'other.parquet'}")
    with pytest.raises(ValueError, match="echo_embeds"):
        pretrain(simulated, "refused", "model.projection_dim=8")


counts = st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(any)


@given(counts, st.integers(0, 5), st.integers(0, 3))
def test_every_batch_of_every_data_set_comes_once(counts, seed, epoch):
    order = batch_order(counts, seed, epoch)
    assert np.array_equal(np.bincount(order, minlength=len(counts)), counts)
    assert np.array_equal(order, batch_order(counts, seed, epoch))


@settings(max_examples=50)
@given(counts, st.integers(0, 5), st.data())
def test_processes_draw_alike_and_a_resumed_epoch_goes_on(counts, seed, data):
    def batches(rank: int, processes: int):
        def source(index: int):
            size = counts[index] * 4 + index  # some records are too few for a batch

            def of_epoch(epoch: int, start: int):
                for rows in epoch_batches(size, 4 // processes, seed, epoch, rank, processes, start):
                    yield {"source": index, "rows": rows}

            return size, of_epoch

        num_records, mixed = mix_batches([source(index) for index in range(len(counts))], 4, seed)
        assert num_records == 4 * sum(counts)
        return mixed

    whole = list(batches(0, 1)(1, 0))
    start = data.draw(st.integers(0, len(whole)))
    assert list(batches(0, 1)(1, start)) == whole[start:]
    halves = [list(batches(rank, 2)(1, 0)) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert [part["source"] for part in parts] == [batch["source"]] * 2  # of one data set in all processes
        assert parts[0]["rows"] + parts[1]["rows"] == batch["rows"]


def test_data_sets_alternate_at_random_and_anew_every_epoch():
    order = batch_order([500, 500], seed=0, epoch=0)
    changes = (np.diff(order) != 0).mean()
    assert changes == pytest.approx(0.5, abs=0.06)
    assert not np.array_equal(order, batch_order([500, 500], seed=0, epoch=1))


def test_the_published_recipe_is_complete():
    config = str(Path(pretrain_echoing_ecg.__file__).parent / "configs" / "echoing_ecg.yaml")
    recipe = parse_settings(EchoingEcgSettings, "echoing_ecg", "", ["--config", config])
    published = (recipe.loop.learning_rate, recipe.loop.weight_decay, tuple(recipe.loop.betas))
    assert published == (3e-5, 0.01, (0.9, 0.999))
    assert (recipe.loop.warmup_share, recipe.loop.decay, recipe.loop.precision) == (0.03, "cosine", "bf16")
    assert recipe.loop.max_grad_norm == 1.0 and recipe.echo and recipe.echo_features
    assert EcgFeatureExtractor(**recipe.processor | {"normalization": "none"}).num_samples == 1000
