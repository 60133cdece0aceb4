"""EcgFeatureExtractor: the same heart gives the same input, whatever the file; bad input is never passed over."""

import csv
import json
import re
import tracemalloc
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.signal import butter, resample_poly, sosfiltfilt

from ecgformers.modeling import filtering_ecg, quality_ecg
from ecgformers.modeling.feature_extraction_ecg import (
    POLICIES,
    EcgFeatureExtractor,
    bandpass_filter,
    resample,
    standardize,
)
from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.quality_ecg import EcgQualityError, EcgQualityWarning, limb_lead_conflict, longest_run
from ecgformers.modeling.reading_ecg import read_ecg

MELP_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
MELP = {"lead_names": MELP_LEADS, "sampling_rate": 500, "num_samples": 5000, "normalization": "min_max"}
ECHOING_ECG = {
    "sampling_rate": 100,
    "num_samples": 1000,
    "bandpass": [0.5, 40],
    "normalization": "standard",
    "lead_means": [0.001 * i for i in range(12)],
    "lead_scales": [0.1 + 0.01 * i for i in range(12)],
}


def make_ecg(sampling_rate: float = 500, seconds: float = 10) -> np.ndarray:
    """Twelve leads (12, samples) in mV of a made-up heart at 60/min: the same function of time at every rate."""
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    phase = time % 1 - 0.5  # seconds from the R peak

    def lead(p, q, r, s, t):
        waves = ((p, -0.16, 0.025), (q, -0.03, 0.012), (r, 0.0, 0.014), (s, 0.03, 0.012), (t, 0.2, 0.045))
        return sum(size * np.exp(-(((phase - center) / width) ** 2)) for size, center, width in waves)

    one, two = lead(0.1, -0.08, 0.7, -0.1, 0.2), lead(0.15, -0.05, 1.1, -0.2, 0.3)
    chest = [lead(0.05, 0.0, 0.2 + 0.25 * i, -1.0 + 0.2 * i, 0.1 + 0.05 * i) for i in range(6)]
    return np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2, *chest])


@dataclass
class Recording:
    signal: np.ndarray
    lead_names: tuple[str, ...] = STANDARD_LEADS
    sampling_rate: float = 500
    source: str = "patient-7"


@pytest.fixture(autouse=True)
def _no_unexpected_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", EcgQualityWarning)
        yield


def min_max(signal: np.ndarray) -> np.ndarray:
    return (signal - signal.min()) / (signal.max() - signal.min() + 1e-8)


def change(lead: str, samples: slice, value: float) -> np.ndarray:
    signal = make_ecg()
    signal[STANDARD_LEADS.index(lead), samples] = value
    return signal


# ---- one heart, many files


@pytest.mark.parametrize(
    ("model", "rate", "kept", "tolerance"),
    [
        (MELP, 1000, slice(None), 1e-3),
        (ECHOING_ECG, 500, slice(None), 1e-6),
        (ECHOING_ECG, 1000, slice(250, -250), 0.01),  # of 10: its filter runs at the source's rate
    ],
)
def test_a_shuffled_upper_case_microvolt_copy_gives_the_same_input(model, rate, kept, tolerance):
    extractor = EcgFeatureExtractor(**model)
    original = extractor(make_ecg(500), 500, STANDARD_LEADS)
    order = np.random.default_rng(0).permutation(12)
    names = [STANDARD_LEADS[i].upper() for i in order]
    copy = extractor(make_ecg(rate)[order] * 1000, rate, names, units="uV")
    np.testing.assert_allclose(
        copy["input_values"][..., kept], original["input_values"][..., kept], rtol=1e-6, atol=tolerance
    )
    assert original["lead_mask"].all() and original["sample_mask"].all()


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_the_leads_never_matters(order):
    extractor = EcgFeatureExtractor(**MELP)
    expected = extractor(make_ecg(), 500, STANDARD_LEADS)["input_values"]
    shuffled = extractor(make_ecg()[order], 500, [STANDARD_LEADS[i] for i in order])["input_values"]
    np.testing.assert_array_equal(shuffled, expected)


def test_leads_come_in_the_order_of_the_model():
    values = EcgFeatureExtractor(lead_names=MELP_LEADS)(make_ecg(), 500, STANDARD_LEADS)["input_values"][0]
    for name, row in zip(MELP_LEADS, values, strict=True):
        np.testing.assert_allclose(row, make_ecg()[STANDARD_LEADS.index(name)], atol=1e-6)


@pytest.mark.parametrize("pair", [("I", "II"), ("II", "III"), ("aVL", "aVF"), ("I", "aVF"), ("aVR", "III")])
def test_limb_leads_are_derived_from_any_two(pair):
    kept = [*pair, "V1", "V2", "V3", "V4", "V5", "V6"]
    rows = [STANDARD_LEADS.index(name) for name in kept]
    extractor = EcgFeatureExtractor(**MELP)
    derived = extractor(make_ecg()[rows], 500, kept)
    np.testing.assert_allclose(
        derived["input_values"], extractor(make_ecg(), 500, STANDARD_LEADS)["input_values"], atol=1e-6
    )
    assert derived["lead_mask"].all()


@pytest.mark.parametrize(
    "as_input",
    [
        lambda x: torch.tensor(x),
        lambda x: torch.tensor(x, dtype=torch.float32, requires_grad=True),
        lambda x: x.tolist(),
        lambda x: x[None],
        lambda x: torch.tensor(x)[None],
        lambda x: [x],
        lambda x: [torch.tensor(x)],
        lambda x: [x.tolist()],
        lambda x: np.asfortranarray(x),
    ],
)
def test_every_container_gives_the_same(as_input):
    extractor = EcgFeatureExtractor(**MELP)
    expected = extractor(make_ecg(), 500, STANDARD_LEADS)["input_values"]
    given_ = extractor(as_input(make_ecg()), 500, STANDARD_LEADS)["input_values"]
    np.testing.assert_allclose(given_, expected, atol=1e-6)


def test_records_carry_their_own_names_rate_and_unit():
    extractor = EcgFeatureExtractor(**MELP)
    expected = extractor(make_ecg(), 500, STANDARD_LEADS)["input_values"]
    record = read_ecg(make_ecg() * 1000, lead_names=STANDARD_LEADS, sampling_rate=500, units="uV")
    np.testing.assert_allclose(extractor(record)["input_values"], expected, atol=1e-6)
    np.testing.assert_array_equal(extractor(Recording(make_ecg()))["input_values"], expected)
    with pytest.raises(ValueError, match=r"patient-7.*has its own sampling_rate"):
        extractor(Recording(make_ecg()), sampling_rate=250)


def test_files_are_opened_with_what_they_do_not_say_themselves(tmp_path):
    extractor = EcgFeatureExtractor(**MELP)
    expected = extractor(make_ecg(), 500, STANDARD_LEADS)["input_values"]
    np.save(tmp_path / "signal.npy", make_ecg())
    np.savez(tmp_path / "whole.npz", signal=make_ecg(), lead_names=STANDARD_LEADS, sampling_rate=500)
    whole, bare = tmp_path / "whole.npz", str(tmp_path / "signal.npy")
    np.testing.assert_array_equal(extractor(whole)["input_values"], expected)
    np.testing.assert_array_equal(extractor([str(whole), whole])["input_values"], np.concatenate([expected] * 2))
    np.testing.assert_array_equal(extractor(bare, 500, STANDARD_LEADS)["input_values"], expected)
    assert [str(finding) for finding in extractor.check_ecg(bare)] == [
        f"{bare}: does not say its lead names: pass lead_names=('I', 'II', ...)"
    ]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.hea"):
        extractor(tmp_path / "nowhere.hea")


def test_a_mixed_batch_equals_its_parts():
    extractor = EcgFeatureExtractor(**ECHOING_ECG)
    eight = [0, 1, *range(6, 12)]
    signals = [make_ecg(500), make_ecg(257.5, 7), make_ecg(1000, 20)[eight]]
    rates, names = [500, 257.5, 1000], [STANDARD_LEADS, STANDARD_LEADS, [STANDARD_LEADS[i] for i in eight]]
    with pytest.warns(EcgQualityWarning, match="record 2: the recording is 20.00 s long"):
        batch = extractor(signals, rates, names, return_tensors="pt")
    assert batch["input_values"].shape == (3, 12, 1000) and batch["input_values"].dtype == torch.float32
    for i, each in enumerate(zip(signals, rates, names, strict=True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EcgQualityWarning)
            one = extractor(*each)
        for key in extractor.model_input_names:
            np.testing.assert_array_equal(batch[key][i], one[key][0])


def test_units_may_differ_by_lead_and_integers_may_be_microvolts():
    extractor = EcgFeatureExtractor(**MELP)
    expected = extractor(make_ecg(), 500, STANDARD_LEADS)["input_values"]
    factors = np.array([1000.0, 1.0, 0.001] * 4)[:, None]
    mixed = extractor(make_ecg() * factors, 500, STANDARD_LEADS, units=["µV", "MV", "v"] * 4)["input_values"]
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    whole = extractor((make_ecg() * 1000).round().astype(np.int16), 500, STANDARD_LEADS, units="uV")["input_values"]
    np.testing.assert_allclose(whole, expected, atol=1e-3)


# ---- length, padding, normalisation


def test_short_recordings_are_padded_with_zeros_and_say_so():
    batch = EcgFeatureExtractor(**MELP)(make_ecg(seconds=6), 500, STANDARD_LEADS)
    assert batch["sample_mask"][0].tolist() == [1] * 3000 + [0] * 2000
    assert (batch["input_values"][0, :, 3000:] == 0).all()
    np.testing.assert_allclose(batch["input_values"][0, :, :3000].max(), 1, atol=1e-6)
    assert batch["input_values"].dtype == np.float32
    assert batch["lead_mask"].dtype == batch["sample_mask"].dtype == np.int64


def test_padding_before_normalisation_takes_part_in_it():
    signal = make_ecg(seconds=5)
    padded = np.pad(signal, ((0, 0), (0, 2500)))
    expected = (padded - padded.min()) / (padded.max() - padded.min() + 1e-8)  # MELP's protocol for CPSC 2018
    batch = EcgFeatureExtractor(pad_before_normalization=True, normalization="min_max")(signal, 500, STANDARD_LEADS)
    np.testing.assert_allclose(batch["input_values"][0], expected, atol=1e-6)
    assert (batch["input_values"][0, :, 2500:] > 0.1).all() and batch["sample_mask"].sum() == 2500


@pytest.mark.parametrize(("crop", "first"), [("start", 0), ("center", 3500)])
def test_long_recordings_are_cropped(crop, first):
    signal = make_ecg(seconds=24) * np.linspace(0.5, 1.5, 12000)
    with pytest.warns(EcgQualityWarning, match="24.00 s long, of which the model sees the (first|middle) 10 s"):
        values = EcgFeatureExtractor(crop=crop)(signal, 500, STANDARD_LEADS)["input_values"][0]
    np.testing.assert_allclose(values, signal[:, first : first + 5000], atol=1e-6)


def test_standard_normalisation_follows_the_leads():
    means, scales = np.linspace(-0.1, 0.1, 12), np.linspace(0.0, 0.2, 12)
    model = {"lead_names": MELP_LEADS, "normalization": "standard", "lead_means": means, "lead_scales": scales}
    values = EcgFeatureExtractor(**model)(make_ecg(), 500, STANDARD_LEADS)["input_values"][0]
    for row, name in enumerate(MELP_LEADS[1:], start=1):
        expected = (make_ecg()[STANDARD_LEADS.index(name)] - means[row]) / scales[row]
        np.testing.assert_allclose(values[row], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values[0], (make_ecg()[0] + 0.1) / 1e-8, rtol=1e-5)  # a scale of 0 is taken as 1e-8


@pytest.mark.parametrize("rate", [100, 128, 257.5, 360, 400, 977])
def test_any_rate_keeps_the_shape_of_the_heart(rate):
    values = EcgFeatureExtractor()(make_ecg(rate), rate, STANDARD_LEADS)["input_values"][0]
    assert np.abs(values - make_ecg())[:, 100:-100].max() < 0.02  # mV of 2; QRS waves are near 50 Hz


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(100, 1000))
def test_resampling_keeps_duration_and_level(source_rate, target_rate, samples):
    resampled = resample(np.full((1, samples), 0.7), source_rate, target_rate)
    assert abs(resampled.shape[1] - samples * target_rate / source_rate) <= 1
    np.testing.assert_allclose(resampled, 0.7)


def test_bandpass_keeps_the_band_and_removes_the_rest():
    time = np.arange(5000) / 500
    tones = {frequency: np.sin(2 * np.pi * frequency * time)[None] for frequency in (0.05, 10, 60)}
    gains = {f: np.std(bandpass_filter(x, 500, [0.5, 40], 100)[0, 2000:3000]) / np.std(x) for f, x in tones.items()}
    assert gains[0.05] < 0.01 and abs(gains[10] - 1) < 0.01 and gains[60] < 0.05
    drift = bandpass_filter(tones[0.05], 500, [0, 40], 100)
    np.testing.assert_allclose(drift, tones[0.05], atol=1e-3)


# ---- bad input: refused, repaired or told, as the settings say

BAD = {
    "missing_leads": (make_ecg()[:-1], STANDARD_LEADS[:-1], "lead V6 is missing"),
    "unknown_leads": (np.vstack([make_ecg(), make_ecg()[:1]]), (*STANDARD_LEADS, "vx"), "unknown lead 'vx'"),
    "non_finite": (change("V2", slice(70, 80), np.nan), STANDARD_LEADS, "lead V2 has 10 NaN .* gap 0.020 s"),
    "out_of_range": (
        change("V3", slice(70, 75), -1e39),
        STANDARD_LEADS,
        "V3 has 5 samples beyond 500 mV.* 0.010 s",
    ),
    "implausible_scale": (make_ecg() * 1000, STANDARD_LEADS, "all twelve leads are implausibly scaled"),
    "unusual_gain": (make_ecg() * 10, STANDARD_LEADS, "lead V6 swings by 15 mV in 2 s.*factor of 10"),
    "flat_leads": (change("V4", slice(None), 0.3), STANDARD_LEADS, "lead V4 is flat"),
    "saturated_leads": (change("V1", slice(900, 950), 5.0), STANDARD_LEADS, "V1 is saturated: .* 5.00 mV for 0.100 s"),
    "inconsistent_leads": (
        make_ecg()[[0, 2, 1, *range(3, 12)]],
        STANDARD_LEADS,
        "I \\+ III = II fails by 0.* mV RMS.*with II and III exchanged",
    ),
    "short_recordings": (make_ecg(seconds=2), STANDARD_LEADS, "is 2.00 s long"),
    "long_recordings": (
        make_ecg(seconds=15),
        STANDARD_LEADS,
        "is 15.00 s long, .* sees the first 10 s",
    ),
}


@pytest.mark.parametrize(
    ("setting", "policy"), [(setting, policy) for setting, policies in POLICIES.items() for policy in policies]
)
def test_each_policy_does_what_it_says(setting, policy):
    signal, names, message = BAD[setting]
    extractor = EcgFeatureExtractor(**{setting: policy})
    record = Recording(signal, names)
    if policy == "error":
        with pytest.raises(EcgQualityError, match=f"(?s)patient-7: .*{message}.* set {setting}='"):
            extractor(record)
    elif (setting, policy) == ("out_of_range", "ignore"):  # there are limits
        with pytest.raises(EcgQualityError, match=r"V3 reaches 1e\+39"):
            extractor(record)
    elif policy == "ignore":
        assert extractor(record)["lead_mask"].all()
    else:
        with pytest.warns(EcgQualityWarning, match=f"(?s)patient-7: .*{message}.*{setting}='{policy}'"):
            batch = extractor(record)
        assert np.isfinite(batch["input_values"]).all()
        assert batch["lead_mask"].all() == (policy != "zero_fill")
    findings = [finding for finding in extractor.check_ecg(record) if finding.kind == setting]
    assert len(findings) == 1 and re.search(message, str(findings[0])) and findings[0].remedy


def test_every_policy_has_a_case_and_its_default():
    assert BAD.keys() == POLICIES.keys()
    assert all(getattr(EcgFeatureExtractor(), setting) == values[0] for setting, values in POLICIES.items())


@pytest.mark.parametrize("normalization", ["min_max", "none"])
@pytest.mark.parametrize("setting", ["missing_leads", "flat_leads"])
def test_zero_filled_leads_are_zero_and_do_not_shift_the_others(setting, normalization):
    signal, names, _ = BAD[setting]
    extractor = EcgFeatureExtractor(**{setting: "zero_fill"}, normalization=normalization)
    with pytest.warns(EcgQualityWarning):
        batch = extractor(signal, 500, names)
    row = 11 if setting == "missing_leads" else STANDARD_LEADS.index("V4")
    rest = [i for i in range(12) if i != row]
    assert batch["lead_mask"][0].tolist() == [int(i != row) for i in range(12)]
    assert (batch["input_values"][0, row] == 0).all()
    expected = min_max(make_ecg()[rest]) if normalization == "min_max" else make_ecg()[rest]
    np.testing.assert_allclose(batch["input_values"][0, rest], expected, atol=1e-6)


def test_gaps_are_bridged_up_to_the_limit_and_longer_ones_lose_the_lead():
    extractor = EcgFeatureExtractor(non_finite="interpolate", max_gap=0.05)
    signal = change("V2", slice(70, 80), np.inf)
    with pytest.warns(EcgQualityWarning, match="lead V2 has 10 NaN"):
        values = extractor(signal, 500, STANDARD_LEADS)["input_values"][0]
    np.testing.assert_allclose(values, make_ecg(), atol=0.05)
    assert np.isinf(signal).sum() == 10, "the caller's array was changed"
    with (
        pytest.warns(EcgQualityWarning, match="beyond repair"),
        pytest.raises(EcgQualityError, match="lead V2 is missing"),
    ):
        extractor(change("V2", slice(70, 170), np.nan), 500, STANDARD_LEADS)
    with pytest.warns(EcgQualityWarning, match="lead aVF.*beyond repair"):  # but aVF follows from the others
        batch = extractor(change("aVF", slice(None), np.nan), 500, STANDARD_LEADS)
    np.testing.assert_allclose(batch["input_values"][0], make_ecg(), atol=1e-6)
    assert batch["lead_mask"].all()


def test_a_recording_without_any_lead_of_the_model_is_refused_even_where_leads_may_be_missing():
    extractor = EcgFeatureExtractor(missing_leads="zero_fill")
    names = [f"EEG {i}" for i in range(12)]
    with pytest.warns(EcgQualityWarning), pytest.raises(ValueError, match="no lead of the model carries a signal"):
        extractor(make_ecg(), 500, names)
    findings = extractor.check_ecg(make_ecg(), 500, names)
    assert [finding.kind for finding in findings] == ["unknown_leads", "missing_leads", "unusable"]
    assert findings[0].leads == tuple(names) and "all twelve leads are missing; usable are none" in str(findings[1])


def test_what_the_model_does_not_use_is_not_judged():
    signal = change("V6", slice(None), np.nan)
    batch = EcgFeatureExtractor(lead_names=["II", "V1"])(signal, 500, STANDARD_LEADS)
    np.testing.assert_allclose(batch["input_values"][0], make_ecg()[[1, 6]], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((make_ecg(), None, STANDARD_LEADS), "record 0: the sampling rate is not known.*Give sampling_rate"),
        ((make_ecg(), 0, STANDARD_LEADS), "positive number of Hz"),
        ((make_ecg(), float("nan"), STANDARD_LEADS), "positive number of Hz"),
        ((make_ecg(), "500", STANDARD_LEADS), "positive number of Hz, not '500'"),
        ((make_ecg(), 500), "the leads are not known.*Give lead_names"),
        ((make_ecg().T, 500, STANDARD_LEADS), "12 lead names for 5000 leads; is it transposed"),
        ((make_ecg()[0], 500, STANDARD_LEADS), "shape"),
        ((np.zeros((12, 0)), 500, STANDARD_LEADS), "shape .leads, samples., neither of them 0"),
        ((make_ecg().astype(np.int16), 500, STANDARD_LEADS), "integers .int16., most likely ADC counts.*gain"),
        ((make_ecg().astype(complex), 500, STANDARD_LEADS), "complex"),
        ((make_ecg(), 500, ("I", "i", *STANDARD_LEADS[2:])), "lead I is there twice"),
        ((make_ecg(), 500, STANDARD_LEADS, "kV"), "the unit of lead I, 'kV', is not nV"),
        ((make_ecg(), 500, STANDARD_LEADS, ["mV"] * 3), "3 units for 12 leads"),
        (([make_ecg()] * 2, [500] * 3, STANDARD_LEADS), "sampling_rate is given for 3 recordings, ecg holds 2"),
        (([make_ecg()] * 2, 500, [STANDARD_LEADS] * 3), "lead_names is given for 3 recordings, ecg holds 2"),
        (([make_ecg(), make_ecg()[:, :0]], 500, STANDARD_LEADS), "record 1: .*shape"),
        (([], 500, STANDARD_LEADS), "ecg holds no recording"),
        (("https://example.org/record.hea", 500, STANDARD_LEADS), "https://.*not a local file"),
        ((np.zeros((12, 5000)), 500, STANDARD_LEADS), "no lead of the model carries a signal"),
    ],
)
def test_what_is_no_usable_ecg_is_refused(arguments, message):
    extractor = EcgFeatureExtractor(flat_leads="ignore")
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        extractor(*arguments)
    assert message.split(".")[0][:9] in " ".join(map(str, extractor.check_ecg(*arguments)))


@pytest.mark.parametrize(
    ("signal", "rate", "message"),
    [(make_ecg(60), 60, "cannot hold the band up to 40 Hz"), (make_ecg(1000)[:, 490:510], 1000, "too few")],
)
def test_a_filter_that_cannot_work_says_so(signal, rate, message):
    extractor = EcgFeatureExtractor(**ECHOING_ECG, min_duration=0)
    with pytest.raises(ValueError, match=f"patient-7: .*{message}"):
        extractor(Recording(signal, sampling_rate=rate))


@pytest.mark.parametrize("factor", [1e-3, 1e3], ids=["V", "uV"])
def test_wrong_units_are_caught_in_both_directions(factor):
    with pytest.raises(EcgQualityError, match=r"implausibly scaled.*Give the right units"):
        EcgFeatureExtractor()(make_ecg() * factor, 500, STANDARD_LEADS)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.001, 0.005), st.integers(0, 2**32 - 1))
def test_rounding_offsets_and_noise_in_common_do_not_break_the_identities(step, seed):
    random = np.random.default_rng(seed)
    rounded = np.round(make_ecg() / step) * step + random.normal(size=(12, 1))
    assert limb_lead_conflict(dict(zip(STANDARD_LEADS, rounded, strict=True))) == ""


def test_every_exchange_of_two_limb_labels_is_seen_and_named():
    limb = STANDARD_LEADS[:6]
    for i in range(6):
        for j in range(i):
            rows = dict(zip(limb, make_ecg(), strict=False))
            rows[limb[i]], rows[limb[j]] = rows[limb[j]], rows[limb[i]]
            assert f"with {limb[j]} and {limb[i]} exchanged" in limb_lead_conflict(rows)


def test_an_inverted_lead_is_named_and_swapped_arms_are_not_claimed():
    leads = dict(zip(STANDARD_LEADS, make_ecg(), strict=True))
    assert limb_lead_conflict(leads | {"aVL": -leads["aVL"]}).endswith("all identities hold with aVL inverted")
    swapped_arms = {
        "I": -leads["I"],
        "II": leads["III"],
        "III": leads["II"],
        "aVR": leads["aVL"],
        "aVL": leads["aVR"],
        "aVF": leads["aVF"],
    }
    assert limb_lead_conflict(swapped_arms) == ""


def test_check_ecg_lists_everything_without_raising_or_warning():
    signal = change("V2", slice(70, 80), np.nan)
    signal[9] = 0
    findings = EcgFeatureExtractor().check_ecg(Recording(signal[:-1], STANDARD_LEADS[:-1]))
    assert [str(finding).split(" has ")[0].split(" is ")[0] for finding in findings] == [
        "lead V2",
        "lead V6",
        "lead V4",
    ]
    assert EcgFeatureExtractor().check_ecg(Recording(make_ecg())) == []


@given(st.lists(st.booleans(), max_size=30))
def test_longest_run_counts(mask):
    text = "".join("x" if value else " " for value in mask)
    assert longest_run(np.array(mask, dtype=bool)) == max(map(len, text.split()), default=0)


# ---- nothing that is no number enters or leaves


@pytest.mark.parametrize("policies", [{}, {"out_of_range": "ignore", "implausible_scale": "ignore"}])
@pytest.mark.parametrize("model", [MELP, ECHOING_ECG, {}], ids=["min_max", "standard", "none"])
@settings(max_examples=25, deadline=None)
@given(
    value=st.one_of(st.floats(), st.floats(1e3, 1e300), st.floats(-1e40, -600)),
    lead=st.integers(0, 11),
    first=st.integers(0, 4990),
    length=st.integers(1, 10),
)
def test_whatever_a_sample_holds_the_input_is_finite_or_the_recording_refused(
    policies, model, value, lead, first, length
):
    signal = make_ecg()
    signal[lead, first : first + length] = value
    for repair in ({}, {"non_finite": "interpolate"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EcgQualityWarning)
            try:
                batch = EcgFeatureExtractor(**model | policies | repair)(signal, 500, STANDARD_LEADS)
            except EcgQualityError as error:
                assert STANDARD_LEADS[lead] in str(error) and not abs(value) <= 500
            else:
                assert np.isfinite(batch["input_values"]).all()


def test_a_spike_that_no_amplifier_gives_is_bridged_like_a_gap():
    extractor = EcgFeatureExtractor(out_of_range="interpolate")
    for value in (1e39, -501.0):
        with pytest.warns(EcgQualityWarning, match="lead V2 has 10 samples beyond 500 mV"):
            values = extractor(change("V2", slice(70, 80), value), 500, STANDARD_LEADS)["input_values"][0]
        np.testing.assert_allclose(values, make_ecg(), atol=0.05)
    with pytest.warns(EcgQualityWarning), pytest.raises(EcgQualityError, match="lead V2 is missing"):
        extractor(change("V2", slice(70, 170), 1e39), 500, STANDARD_LEADS)
    offset = make_ecg() + 300.0  # of electrodes, in a recording without a high-pass
    np.testing.assert_allclose(extractor(offset, 500, STANDARD_LEADS)["input_values"][0], offset, rtol=1e-6)


@pytest.mark.parametrize("as_masked", [lambda x, m: np.ma.masked_array(x, m), lambda x, m: [np.ma.masked_array(x, m)]])
@pytest.mark.parametrize("integers", [False, True])
def test_masked_samples_are_not_measured(as_masked, integers):
    mask = np.zeros((12, 5000), bool)
    mask[7, 70:80] = True
    signal = (1000 * make_ecg()).round().astype(np.int16) if integers else make_ecg()
    units = "uV" if integers else None
    with pytest.raises(EcgQualityError, match="lead V2 has 10 NaN"):
        EcgFeatureExtractor()(as_masked(signal, mask), 500, STANDARD_LEADS, units)
    with pytest.warns(EcgQualityWarning, match="lead V2 has 10 NaN"):
        EcgFeatureExtractor(non_finite="interpolate")(as_masked(signal, mask), 500, STANDARD_LEADS, units)
    if not integers:
        with pytest.raises(EcgQualityError, match="lead V2 has 10 NaN"):
            EcgFeatureExtractor()(Recording(np.ma.masked_array(signal, mask)))


@pytest.mark.parametrize("rate", [1e-300, 0.01, 0.1, 19, 10**7, 1e300, 10**400, 10**5000], ids=range(8))
def test_rates_of_no_ecg_are_refused_before_memory_is_taken(rate):
    tracemalloc.start()
    try:
        with pytest.raises(EcgQualityError, match=r"patient-7: no ECG is sampled at .* Hz; 20 to 1e\+06 Hz"):
            EcgFeatureExtractor()(Recording(make_ecg(), sampling_rate=rate))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_filters_are_designed_once():
    extractor = EcgFeatureExtractor(**ECHOING_ECG | {"bandpass": [0.7, 35.0]})
    designs = filtering_ecg._butterworth, filtering_ecg._taps, filtering_ecg._blocks
    before = [design.cache_info().misses for design in designs]
    for _ in range(5):
        extractor([make_ecg(440)] * 3, 440, STANDARD_LEADS)
    assert [design.cache_info().misses - misses for design, misses in zip(designs, before, strict=True)] == [1, 1, 1]


def test_a_clean_recording_is_not_searched_for_medians_and_rails(monkeypatch):
    for name in ("_scale", "longest_run"):
        monkeypatch.setattr(quality_ecg, name, None)
    noise = np.random.default_rng(0).normal(scale=0.001, size=(12, 5000))
    EcgFeatureExtractor(**MELP)(make_ecg() + noise, 500, STANDARD_LEADS)


@settings(max_examples=60, deadline=None)
@given(
    source=st.sampled_from([100, 128, 250, 257.5, 360, 400, 500, 977, 1000]),
    target=st.sampled_from([100, 125, 250, 500]),
    samples=st.integers(1, 700),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_resampling_equals_scipys(source, target, samples, dtype, seed):
    signal = np.random.default_rng(seed).normal(1, 1, (3, samples)).astype(dtype)
    ratio = Fraction(target) / Fraction(source)
    options = {"axis": -1, "window": ("kaiser", 5.0), "padtype": "median"}
    expected = signal if ratio == 1 else resample_poly(signal, ratio.numerator, ratio.denominator, **options)
    ours = resample(signal, source, target)
    assert ours.dtype == expected.dtype and ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-12 if dtype == "float64" else 3e-6)


@pytest.mark.parametrize("band", [[0.5, 40], [0, 40], [1, 20]])
@pytest.mark.parametrize("order", [1, 3, 4])
def test_the_filter_equals_scipys_to_the_bit(band, order):
    signal = np.random.default_rng(0).normal(size=(2, 3, 777))
    edges, kind = (band, "bandpass") if band[0] > 0 else (band[1], "lowpass")
    expected = sosfiltfilt(butter(order, edges, kind, fs=500, output="sos"), signal, axis=-1)
    np.testing.assert_array_equal(bandpass_filter(signal, 500, band, 100, order), expected)


# ---- settings

OTHER_SETTINGS = {
    "lead_names": ["II", "V1"],
    "sampling_rate": 250,
    "num_samples": 77,
    "bandpass": [0.5, 40.0],
    "normalization": "standard",
    "lead_means": [0.1, 0.2],
    "lead_scales": [1.0, 2.0],
    "pad_before_normalization": True,
    "crop": "center",
    "min_duration": 1.5,
    "max_gap": 0.1,
} | {setting: values[1] for setting, values in POLICIES.items()}


def test_every_setting_survives_saving(tmp_path):
    default = EcgFeatureExtractor().to_dict()
    extractor = EcgFeatureExtractor(**OTHER_SETTINGS)
    extractor.save_pretrained(tmp_path / "one")
    loaded = EcgFeatureExtractor.from_pretrained(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two")
    saved = json.loads((tmp_path / "one" / "preprocessor_config.json").read_text())
    assert OTHER_SETTINGS.items() <= saved.items()
    assert all(default[setting] != value for setting, value in OTHER_SETTINGS.items()), "a default tests nothing"
    assert default.keys() - {"feature_extractor_type"} == OTHER_SETTINGS.keys(), "a setting is not tested"
    for name in (
        "preprocessor_config.json",
        "feature_extraction_ecg.py",
        "filtering_ecg.py",
        "leads_ecg.py",
        "quality_ecg.py",
        "units_ecg.py",
    ):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    overridden = EcgFeatureExtractor.from_pretrained(tmp_path / "one", num_samples=88)
    assert overridden.num_samples == 88


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"smapling_rate": 100}, "no setting smapling_rate"),
        ({"normalization": "zscore"}, "normalization='zscore' is none of"),
        ({"missing_leads": "ignore"}, "missing_leads='ignore' is none of"),
        ({"lead_names": ["I", "DI"]}, "each lead once"),
        ({"lead_names": ["I", "V17"]}, "unknown lead 'V17'"),
        ({"sampling_rate": 0}, "positive"),
        ({"bandpass": [40, 0.5]}, "bandpass"),
        ({"bandpass": [40]}, "bandpass"),
        ({"normalization": "standard"}, "needs it"),
        ({"lead_means": [0.0] * 12}, "lead_means belongs to"),
        *(
            ({"sampling_rate": value}, "positive")
            for value in (-1, float("nan"), float("inf"), 0.01, 1e9, "500", True)
        ),
        *(({"num_samples": value}, "num_samples must be") for value in (-1, 0, 10**12, 2.5, float("nan"), "9", True)),
        *(({"min_duration": value}, "number of seconds") for value in (-1, float("nan"), float("inf"), "2")),
        *(({"max_gap": value}, "number of seconds") for value in (-1, float("nan"), float("inf"))),
        *(({"bandpass": band}, "bandpass") for band in ([float("nan"), 40], [0.5, float("inf")], [0.5, float("nan")])),
        *(
            ({"normalization": "standard", "lead_means": [0.0] * 12, "lead_scales": [*[1.0] * 11, value]}, "V6 is")
            for value in (-1.0, float("nan"), float("inf"))
        ),
        *(
            ({"normalization": "standard", "lead_means": [value, *[0.0] * 11], "lead_scales": [1.0] * 12}, "lead I is")
            for value in (float("nan"), float("inf"), float("-inf"))
        ),
        ({"normalization": "standard", "lead_means": [0.0], "lead_scales": [1.0]}, "1 values for 12 leads"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EcgFeatureExtractor(**setting)


# ---- numbers of the reference system, and real recordings


def reference_numbers(parity_dir):
    folder = parity_dir / "out" / "echoingecg_helpers"
    return load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text())


def test_filter_and_resampling_match_the_reference(parity_dir):
    arrays, meta = reference_numbers(parity_dir)
    assert len(meta["cases"]) > 10
    for case in meta["cases"]:
        settings_ = meta["downsample_params"]["defaults"] | case["kwargs"]
        signal, expected = arrays[f"down/{case['name']}/in"], arrays[f"down/{case['name']}/out"]
        source_rate, target_rate, axis = settings_["src_fs"], settings_["target_fs"], settings_["axis"]
        signal, expected = np.moveaxis(signal, axis, -1), np.moveaxis(expected, axis, -1)
        if settings_["band"] is not None:
            signal = bandpass_filter(signal, source_rate, settings_["band"], target_rate, settings_["bp_order"])
        ours = resample(signal, source_rate, target_rate)
        assert ours.dtype == expected.dtype, case["name"]
        np.testing.assert_allclose(ours, expected, atol=1e-6, err_msg=case["name"])


def test_standardisation_matches_the_reference(parity_dir):
    arrays, _ = reference_numbers(parity_dir)
    center, scale = arrays["scale/center"], arrays["scale/scale"]
    for name in ("2d", "3d", "2d_f64", "2d_i16"):
        ours = standardize(arrays[f"scale/in_{name}"], center, scale)
        np.testing.assert_allclose(ours, arrays[f"scale/out_{name}"], rtol=1e-6, atol=1e-6, err_msg=name)
    expected = arrays["scale/out_2d_clamped"]  # of a signal 0.1 above the centers; one scale is 0
    ours = standardize(np.full(expected.shape, 0.1) + center[:, None], center, arrays["scale/raw_scale_with_zero"])
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_the_whole_path_matches_the_reference(parity_dir):
    arrays, _ = reference_numbers(parity_dir)
    signal, filtered = arrays["down/full12/in"], arrays["down/full12/out"]
    center, scale = arrays["scale/center"], arrays["scale/scale"]
    model = ECHOING_ECG | {"lead_means": center, "lead_scales": scale}
    extractor = EcgFeatureExtractor(**model, inconsistent_leads="ignore", implausible_scale="ignore")
    values = extractor(signal, 500, STANDARD_LEADS)["input_values"][0]
    np.testing.assert_allclose(values, (filtered - center[:, None]) / scale[:, None], rtol=1e-5, atol=1e-5)


def test_real_recordings_raise_no_false_alarm(ptb_xl_500hz_dir):
    headers = sorted(ptb_xl_500hz_dir.rglob("*_hr.hea"))
    assert len(headers) > 10
    extractor = EcgFeatureExtractor(**MELP)
    with open(ptb_xl_500hz_dir / "ptbxl_database.csv", newline="") as table:
        paced = {Path(row["filename_hr"]).name for row in csv.DictReader(table) if "PACE" in row["scp_codes"]}
    for header in headers:
        expected = ["pacemaker_spikes"] if header.stem in paced else []
        assert [finding.kind for finding in extractor.check_ecg(read_ecg(header))] == expected, header


def test_real_recordings_with_two_limb_labels_exchanged_are_caught(ptb_xl_500hz_dir):
    for header in sorted(ptb_xl_500hz_dir.rglob("*_hr.hea")):
        record = read_ecg(header)
        leads = dict(zip(record.lead_names, record.signal, strict=True))
        leads["II"], leads["III"] = leads["III"], leads["II"]
        assert "with II and III exchanged" in limb_lead_conflict(leads), header
