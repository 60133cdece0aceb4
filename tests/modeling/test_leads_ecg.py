import itertools

import numpy as np
import pytest

from ecgformers.modeling.leads_ecg import LIMB_LEADS, STANDARD_LEADS, canonical_lead_name, derive_limb_leads


@pytest.mark.parametrize(
    ("spelling", "lead"),
    [(lead, lead) for lead in STANDARD_LEADS]
    + [(f"  {lead.upper()} ", lead) for lead in STANDARD_LEADS]
    + [(f"MDC_ECG_LEAD_{lead.upper()}", lead) for lead in STANDARD_LEADS]
    + [(f"lead_{lead.lower()}", lead) for lead in STANDARD_LEADS]
    + [(f"{lead} lead", lead) for lead in STANDARD_LEADS]
    + [
        ("DI", "I"),
        ("dII", "II"),
        ("DIII", "III"),
        ("C1", "V1"),
        ("ECG_I", "I"),
        ("LeadV6", "V6"),
        ("Lead I (Einthoven)", "I"),
        ("aVR, augmented voltage, right", "aVR"),
        ("5.6.3-9-61", "III"),
        ("2:64", "aVF"),
    ],
)
def test_spellings_of_a_lead(spelling, lead):
    assert canonical_lead_name(spelling) == lead


@pytest.mark.parametrize("name", ["-aVR", "VR", "MLII", "V7", "V3R", "IV", "X", "", "lead", "(I)", "D1", "1"])
def test_other_leads_are_refused_by_name(name):
    with pytest.raises(ValueError, match="expected one of I, II, III") as error:
        canonical_lead_name(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("given", list(itertools.combinations(LIMB_LEADS, 2)))
def test_any_two_limb_leads_give_the_other_four(given):
    right_arm, left_arm, left_leg = np.random.default_rng(0).normal(size=(3, 50))  # electrode potentials
    centre = (right_arm + left_arm + left_leg) / 3
    truth = {
        "I": left_arm - right_arm,
        "II": left_leg - right_arm,
        "III": left_leg - left_arm,
        "aVR": 1.5 * (right_arm - centre),
        "aVL": 1.5 * (left_arm - centre),
        "aVF": 1.5 * (left_leg - centre),
    }
    derived = derive_limb_leads({lead: truth[lead] for lead in given})
    assert set(derived) == set(truth) - set(given)
    for lead, signal in derived.items():
        np.testing.assert_allclose(signal, truth[lead], atol=1e-12)


def test_nothing_is_derived_from_one_limb_lead_or_over_a_measured_one():
    signal = np.ones(3, np.float32)
    assert derive_limb_leads({"II": signal, "V1": signal}) == {}
    assert derive_limb_leads(dict.fromkeys(LIMB_LEADS, signal)) == {}
    assert derive_limb_leads({"I": signal, "II": signal})["aVR"].dtype == np.float32
