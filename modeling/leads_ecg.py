"""Names of the twelve standard ECG leads, and the exact relations between the six limb leads."""

import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
MELP_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")  # MIMIC-IV-ECG: aVF first

# Each limb lead as a linear combination (of I, of II): Einthoven I + III = II, and Goldberger
# aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2.  Any two of the six determine the other four.
LIMB_LEADS = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}

_ALIASES = {lead.lower(): lead for lead in STANDARD_LEADS}
_ALIASES |= {f"d{lead.lower()}": lead for lead in ("I", "II", "III")}
_ALIASES |= {f"c{i}": f"V{i}" for i in range(1, 7)}  # IEC colour code names of the chest electrodes
_SCP_IDS = dict(zip((1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8), STANDARD_LEADS, strict=True))
_ALIASES |= {f"5.6.3-9-{number}": lead for number, lead in _SCP_IDS.items()}  # DICOM scheme SCPECG
_ALIASES |= {f"2:{number}": lead for number, lead in _SCP_IDS.items()}  # DICOM scheme MDC


@lru_cache(maxsize=1024)
def canonical_lead_name(name: str) -> str:
    """The standard name (one of `STANDARD_LEADS`) of a lead, however a source spells it.

    Case, spaces, underscores, the word "lead" and a remark in parentheses or after a comma do not matter; `DI` to
    `DIII`, `C1` to `C6`, `MDC_ECG_LEAD_*` and the DICOM codes of SCP-ECG (`5.6.3-9-1`) and MDC (`2:1`) are known.
    Leads that merely resemble a standard one (`-aVR`, `MLII`, unaugmented `VR`) are not taken for it.

    Raises:
        ValueError: for any other name.
    """
    plain = re.sub(r"\(.*?\)|,.*", " ", str(name).lower()).replace("_", " ")
    words = [word for word in plain.split() if word not in {"mdc", "ecg", "lead"}]
    try:
        return _ALIASES["".join(words).removeprefix("lead")]
    except KeyError:
        raise ValueError(
            f"unknown lead {name!r}: expected one of {', '.join(STANDARD_LEADS)} (case does not matter), or an alias "
            "such as 'Lead I', 'DI', 'C1', 'MDC_ECG_LEAD_AVR'"
        ) from None


def lead_name(name: str) -> str:
    """The standard name of a standard lead; any other lead (the X, Y, Z of Frank) keeps its own."""
    try:
        return canonical_lead_name(name)
    except ValueError:
        return name.strip()


def derive_limb_leads(leads: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The limb leads missing from `leads`, computed exactly from two that are there (Einthoven 1912, Goldberger 1942).

    Args:
        leads: signals of any one shape and unit, by canonical name; other leads than limb leads are ignored.

    Returns:
        The missing limb leads, by name; empty when fewer than two limb leads are given.  Of more than two, the first
        two in the order of `STANDARD_LEADS` are used.
    """
    present = [lead for lead in LIMB_LEADS if lead in leads]
    if len(present) < 2:
        return {}
    first, second = present[:2]
    (a, b), (c, d) = LIMB_LEADS[first], LIMB_LEADS[second]
    determinant = a * d - b * c
    derived = {}
    for lead, (x, y) in LIMB_LEADS.items():  # (x, y) = u (a, b) + v (c, d), by Cramer's rule
        if lead not in leads:
            u, v = (x * d - y * c) / determinant, (a * y - b * x) / determinant
            derived[lead] = u * leads[first] + v * leads[second]
    return derived
