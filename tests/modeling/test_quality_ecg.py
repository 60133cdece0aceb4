"""check_ecg: a fault that is put into a real ECG is named, the ECG as it is gives no finding; repairs undo it."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from ecgformers.modeling.electrodes_ecg import EXCHANGES, INDEPENDENT_LEADS, LIMB_EXCHANGES
from ecgformers.modeling.feature_extraction_ecg import EcgFeatureExtractor
from ecgformers.modeling.findings_ecg import check_ecg
from ecgformers.modeling.leads_ecg import LIMB_LEADS, STANDARD_LEADS
from ecgformers.modeling.quality_ecg import Finding
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgRecord
from ecgformers.modeling.repair_ecg import repair_ecg

TIME = np.arange(10_000) / 1000  # s


UNSEEN = ("V1 and V2", "V4 and V5", "V4 and V6", "V5 and V6")  # exchanges that this ECG does not show


@pytest.fixture(scope="module")
def record() -> EcgRecord:
    return read_ecg(get_testdata_file("waveform_ecg.dcm", download=False))


def changed(record: EcgRecord, change: Callable[[np.ndarray], np.ndarray], rate: float = 1000.0) -> EcgRecord:
    return replace(record, signal=change(record.signal.astype(float).copy()), sampling_rate=rate)


def exchanged(record: EcgRecord, exchange: np.ndarray) -> EcgRecord:
    leads = dict(zip(record.lead_names, record.signal, strict=True))
    independent = exchange @ np.stack([leads[name] for name in INDEPENDENT_LEADS])
    recorded = dict(zip(INDEPENDENT_LEADS, independent, strict=True))
    recorded |= {name: np.array(weights) @ independent[:2] for name, weights in LIMB_LEADS.items()}
    return replace(record, signal=np.stack([recorded[name] for name in record.lead_names]))


def add(noise: np.ndarray, leads: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda signal: np.where(np.isin(STANDARD_LEADS, leads)[:, None], signal + noise, signal)


def with_spikes(signal: np.ndarray) -> np.ndarray:
    limbs = [np.dot(weights, (1.0, 2.0)) for weights in LIMB_LEADS.values()]
    for first in (300, 301):
        signal[:, first::850] += np.array([*limbs, 3, 3, 2, 2, 1, 1])[:, None]
    return signal


def silent(signal: np.ndarray) -> np.ndarray:
    signal[9, 2000:7000] = 0.1
    return signal


def clipped(signal: np.ndarray) -> np.ndarray:
    signal[6] = np.clip(6 * signal[6], -1.2, 1.2)
    return signal


NOISE = np.random.default_rng(0).normal(size=10_000)
FAULTS = {
    "mains 50": ("mains_noise", ("V2",), add(0.1 * np.sin(2 * np.pi * 50.05 * TIME), ("V2",)), "mains noise of 50 Hz"),
    "mains 60": (
        "mains_noise",
        STANDARD_LEADS,
        add(0.1 * np.sin(2 * np.pi * 60 * TIME), STANDARD_LEADS),
        "all twelve leads have mains noise of 60 Hz, up to 0.1",
    ),
    "muscle": ("muscle_noise", ("V1", "V3"), add(0.5 * NOISE, ("V1", "V3")), "leads V1, V3 have noise between"),
    "wander": ("baseline_wander", ("V5",), add(4 * np.sin(2 * np.pi * 0.15 * TIME), ("V5",)), "lead V5 wanders by up"),
    "step": ("loose_electrode", ("V6",), add(np.where(TIME > 4, 8.0, 0.0), ("V6",)), "lead V6 jumps or falls silent"),
    "silence": ("loose_electrode", ("V4",), silent, "lead V4 jumps or falls silent"),
    "clipping": ("saturated_leads", ("V1",), clipped, "lead V1 is saturated"),
    "gain x 10": ("unusual_gain", STANDARD_LEADS, lambda signal: 10 * signal, "factor of 10"),
    "gain / 10": ("unusual_gain", STANDARD_LEADS, lambda signal: signal / 10, "no lead swings by more than"),
    "pacemaker": ("pacemaker_spikes", (), with_spikes, "12 spikes as of a pacemaker"),
    "volts": ("implausible_scale", STANDARD_LEADS, lambda signal: 1000 * signal, "implausibly scaled"),
    "spike": ("out_of_range", ("V3",), add(np.where(TIME == 5, 1e39, 0.0), ("V3",)), "beyond 500 mV"),
    "gap": ("non_finite", ("V3",), add(np.where(TIME == 5, np.nan, 0.0), ("V3",)), "lead V3 has"),
    "flat": ("flat_leads", ("V3",), add(np.zeros(1), ()), "flat"),
    "labels": (
        "inconsistent_leads",
        STANDARD_LEADS[:6],
        lambda signal: signal[[0, 2, 1, *range(3, 12)]],
        "II and III",
    ),
}


def test_the_ecg_as_it_is_gives_no_finding(record):
    assert check_ecg(record) == [] == EcgFeatureExtractor().check_ecg(record)
    assert check_ecg(replace(record, lead_names=tuple(f"X{i}" for i in range(12)))) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(record, fault):
    kind, leads, change, message = FAULTS[fault]
    if fault == "flat":
        change = lambda signal: np.where(np.isin(STANDARD_LEADS, leads)[:, None], 0.2, signal)  # noqa: E731
    broken = changed(record, change)
    for findings in (check_ecg(broken), EcgFeatureExtractor(missing_leads="zero_fill").check_ecg(broken)):
        of_kind = [finding for finding in findings if finding.kind == kind]
        assert [finding.leads for finding in of_kind] == [leads], findings
        assert message in str(of_kind[0]) and of_kind[0].remedy
        assert {finding.kind for finding in findings} <= {kind, "pacemaker_spikes"}, findings


@pytest.mark.parametrize("factor", [0.2, 5])
def test_a_wrong_sampling_rate_is_named(record, factor):
    findings = check_ecg(replace(record, sampling_rate=1000.0 * factor))
    direction = "high" if factor > 1 else "low"
    assert [finding.kind for finding in findings] == ["wrong_rate"] and f"may be too {direction}" in str(findings[0])


@pytest.mark.parametrize("name", [name for name in EXCHANGES if name not in UNSEEN])
def test_exchanged_electrodes_are_named(record, name):
    findings = check_ecg(exchanged(record, EXCHANGES[name]))
    kind = "exchanged_limb_electrodes" if name in LIMB_EXCHANGES else "exchanged_chest_electrodes"
    assert [finding.kind for finding in findings] == [kind] and f"{name} seem exchanged" in str(findings[0])


@pytest.mark.parametrize("name", LIMB_EXCHANGES)
def test_exchanged_limb_electrodes_are_put_right_when_asked(record, name):
    repaired = repair_ecg(exchanged(record, LIMB_EXCHANGES[name]), ["swap_limb_leads"])
    np.testing.assert_allclose(repaired.signal, record.signal, atol=0.01)  # the file rounds each lead by itself
    assert repaired.metadata["history"] == [f"swap_limb_leads: {name} taken as exchanged"]
    assert "history" not in record.metadata


def test_noise_is_taken_out_when_asked(record):
    noisy = changed(record, FAULTS["mains 60"][2])
    wandering = changed(noisy, FAULTS["wander"][2])
    repaired = repair_ecg(wandering, ("notch", "high_pass"))
    assert check_ecg(repaired) == []
    assert [step.split(":")[0] for step in repaired.metadata["history"]] == ["notch", "high_pass"]
    middle = slice(2000, 8000)
    clean = repair_ecg(record, "high_pass").signal
    assert np.abs(repaired.signal - clean)[:, middle].max() < 0.1


@pytest.mark.parametrize(
    ("repair", "message"),
    [
        ("polish", "'polish' is no repair; there are 'swap_limb_leads'"),
        ("notch", "no mains"),
        ("swap_limb_leads", "no ex"),
    ],
)
def test_what_cannot_be_repaired_is_said(record, repair, message):
    with pytest.raises(ValueError, match=message):
        repair_ecg(record, [repair])
    with pytest.raises(ValueError, match="not measured"):
        repair_ecg(changed(record, FAULTS["gap"][2]), ["high_pass"])


def test_a_finding_prints_as_its_message_and_the_most_severe_comes_first(record):
    assert str(Finding("flat_leads", ("V1",), "warning", "lead V1 is flat", "Leave it out")) == "lead V1 is flat"
    broken = changed(changed(record, with_spikes), FAULTS["mains 50"][2])
    assert [finding.severity for finding in check_ecg(broken)] == ["warning", "note"]


def test_short_slow_and_odd_records_are_judged_by_what_can_be_seen():
    noise = np.random.default_rng(0).normal(scale=0.3, size=(12, 5000))
    for samples, rate in ((1, 500.0), (100, 500.0), (5000, 500.0), (5000, 50.0), (5000, 99.0), (700, 100.0)):
        for leads in (1, 2, 12):
            record = EcgRecord(noise[:leads, :samples], STANDARD_LEADS[:leads], rate)
            assert all(isinstance(finding, Finding) for finding in check_ecg(record))


def test_checking_needs_neither_torch_nor_transformers():
    code = "import sys; from ecgformers import check_ecg; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
