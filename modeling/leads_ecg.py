"""Names of the twelve standard ECG leads, and the exact relations between the six limb leads."""

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

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
for first in (0, 256):  # ISO/IEEE 11073-10102: MDC_ECG_LEAD_* and MDC_ECG_ELEC_POTL_* are SCP's numbers in partition 2
    _ALIASES |= {f"2:{first + number}": lead for number, lead in _SCP_IDS.items()}
    _ALIASES |= {f"{(2 << 16) + first + number}": lead for number, lead in _SCP_IDS.items()}

# Words around a lead's name that say no more than that it is one, without accents.
_FILLER_WORDS = """
    mdc ecg ekg elektrokardiogramm electrocardiogram lead leads elec potl channel chan ch kanal canal deriv derivation
    derivacion derivacao derivazione ableitung extremitatenableitung brustwandableitung afleiding avledning afledning
    odprowadzenie svod derivasyon отведение 誘導 第 导联 einthoven goldberger wilson raw filt filtered
"""
_FILLERS = frozenset(_FILLER_WORDS.split())
_UNITS = frozenset({"nv", "uv", "μv", "mv"})  # NFKC makes the micro sign a Greek mu
_PREFIXES = frozenset({"v", "c", "d", "av"})  # which some sources write apart: "V 1", "aV R"


@lru_cache(maxsize=4096)
def canonical_lead_name(name: str) -> str:
    """The standard name (one of `STANDARD_LEADS`) of a lead, however a source spells it.

    Case, spaces, underscores, the words for lead, channel and ECG in the commoner languages, a unit behind and remarks
    in brackets do not matter; `DI` to `DIII`, `C1` to `C6`, the names and numbers of ISO/IEEE 11073-10102
    (`MDC_ECG_LEAD_AVR`, `MDC_ECG_ELEC_POTL_I`, `2:1`, `131329`) and the codes of SCP-ECG (`5.6.3-9-1`) are known.
    Leads that merely resemble a standard one (`-aVR`, `MLII`, `V1-V2`, unaugmented `VR`) are not taken for it.

    Raises:
        ValueError: for any other name.
    """
    plain = unicodedata.normalize("NFKC", str(name)).lower().strip()
    if plain in _ALIASES:
        return _ALIASES[plain]
    words = [word for word in lead_words(re.sub(r"\(.*?\)|\[.*?\]|,.*", " ", plain)) if word not in _FILLERS]
    if len(words) > 1 and words[-1] in _UNITS:
        words.pop()
    if len(words) == 2 and words[0] in _PREFIXES:
        words = ["".join(words)]
    try:
        (word,) = words
        return _ALIASES[re.sub("^(lead|ecg|ekg)", "", word)]
    except (ValueError, KeyError):
        raise ValueError(
            f"unknown lead {name!r}: expected one of {', '.join(STANDARD_LEADS)} (case does not matter), or an alias "
            "such as 'Lead I', 'DI', 'C1', 'MDC_ECG_LEAD_AVR'"
        ) from None


def lead_words(text: str) -> list[str]:
    """The words of a lead's name in lower case, without accents; a minus sign before one stays a part of it."""
    text = re.sub("(誘導|导联|第)", r" \1 ", text)
    text = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    return [word.rstrip(".") for word in re.sub(r"(?<=\w)-(?=\w)|[_:/]|\.(?=\w)", " ", text).split() if word != "."]


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
