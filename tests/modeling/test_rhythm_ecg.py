import numpy as np
import pytest
import wfdb.processing
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgRecord
from ecgformers.modeling.rhythm_ecg import heart_rate


def synthetic(bpm, rate=500.0, seconds=10.0, leads=12, noise=0.02, irregular=0.0, seed=0) -> EcgRecord:
    """P, QRS and T waves as Gaussians, with drift and noise; `irregular` is the relative spread of the intervals."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    beats = np.cumsum(60 / bpm * (1 + irregular * rng.uniform(-1, 1, round(4 * seconds)))) - 60 / bpm * rng.uniform()
    qt = min(0.3, 0.4 * 60 / bpm)
    signal = 0.2 * np.sin(2 * np.pi * 0.3 * time)
    for delay, width, height in [(-0.16, 0.02, 0.1), (-0.02, 0.008, -0.15), (0, 0.01, 1), (qt, 0.04, 0.25)]:
        distance = np.abs(time[:, None] - (beats + delay)).min(axis=1)
        signal = signal + height * np.exp(-0.5 * (distance / width) ** 2)
    scale = rng.uniform(0.3, 1.5, (leads, 1)) * rng.choice([-1, 1], (leads, 1))
    return EcgRecord(scale * signal + rng.normal(scale=noise, size=(leads, time.size)), STANDARD_LEADS[:leads], rate)


@settings(max_examples=40, deadline=None)
@given(
    bpm=st.floats(40, 180),
    rate=st.sampled_from([100.0, 250.0, 360.0, 500.0, 1000.0]),
    leads=st.sampled_from([1, 3, 12]),
    noise=st.floats(0, 0.03),
    seed=st.integers(0, 1000),
)
def test_synthetic_ecgs(bpm, rate, leads, noise, seed):
    assert heart_rate(synthetic(bpm, rate, 10, leads, noise, seed=seed)) == pytest.approx(bpm, rel=0.03)


def test_real_ecg_with_ten_beats_in_ten_seconds():
    record = read_ecg(get_testdata_file("waveform_ecg.dcm"))
    # R waves of lead II read off the printed sheet, in mm of 25 mm/s paper
    beats = np.array([13.2, 38.1, 62.6, 87.2, 112.1, 136.7, 161.1, 186.1, 210.4, 234.2])
    assert heart_rate(record) == pytest.approx(60 / np.median(np.diff(beats) / 25), rel=0.02)


def test_bad_leads_do_not_matter():
    record = synthetic(72)
    signal = record.signal.copy()
    signal[0] = np.nan
    signal[1] = 0
    signal[2] = 20 * np.random.default_rng(1).normal(size=signal.shape[1])
    assert heart_rate(EcgRecord(signal, STANDARD_LEADS, 500.0)) == pytest.approx(72, rel=0.02)


def test_one_electrode_pop_and_irregular_beats_do_not_matter():
    record = synthetic(80, irregular=0.2)
    signal = record.signal.copy()
    signal[:, 2000:2100] += 30
    assert heart_rate(EcgRecord(signal, STANDARD_LEADS, 500.0)) == pytest.approx(heart_rate(record), rel=0.1)


@pytest.mark.parametrize("leads", [1, 12])
@pytest.mark.parametrize("seed", range(10))
def test_noise_has_no_rhythm(leads, seed):
    noise = np.random.default_rng(seed).normal(size=(leads, 5000))
    for signal in (noise, np.cumsum(noise, axis=1)):
        assert heart_rate(EcgRecord(signal, STANDARD_LEADS[:leads], 500.0)) is None


@pytest.mark.parametrize(
    "record",
    [
        EcgRecord(np.zeros((12, 5000)), STANDARD_LEADS, 500.0),
        EcgRecord(np.full((12, 5000), np.nan), STANDARD_LEADS, 500.0),
        EcgRecord(np.zeros((1, 1)), ("I",), 500.0),
        synthetic(60, seconds=1.9),
        synthetic(60, seconds=3),
        synthetic(60, rate=50.0),
        EcgRecord(synthetic(60).signal * 1e-3, STANDARD_LEADS, 500.0),
    ],
    ids=["flat", "nan", "one sample", "too short", "three beats", "slow sampling", "microvolts"],
)
def test_no_rhythm_where_none_can_be_seen(record):
    assert heart_rate(record) is None


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_xqrs_on_ptb_xl(ptb_xl_500hz_dir):
    compared = 0
    for header in sorted(ptb_xl_500hz_dir.rglob("*.hea")):
        record = read_ecg(header)
        xqrs = wfdb.processing.XQRS(record.signal[1], record.sampling_rate)
        xqrs.detect(verbose=False)
        if len(xqrs.qrs_inds) > 3:  # it finds no beats at all in some
            expected = 60 * record.sampling_rate / np.median(np.diff(xqrs.qrs_inds))
            assert heart_rate(record) == pytest.approx(expected, rel=0.03), header.name
            compared += 1
    assert compared >= 45
