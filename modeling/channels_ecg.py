"""Which channels of a source are the ECG, what they are called, and what the caller says in place of the source."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .leads_ecg import STANDARD_LEADS, lead_words
from .record_ecg import RawEcg, is_voltage, lead_name
from .units_ecg import EcgReadError, check_shape

# Words in the names of what monitors and sleep laboratories record beside an ECG.
_OTHER_WORDS = """
    resp respiration atmung impedance imp thorax thor abdomen abdo airflow flow nasal snore co2 etco2 abp art ap bp ibp
    nbp nibp cvp icp pap pressure druck blood pleth plethysmogram ppg spo2 sao2 pulse puls temp temperature eeg eog emg
    acc accel accelerometer marker markers event events trigger trig status sync annotation annotations crc pacer
    sound pcg scg bcg eda gsr
"""
_OTHERS = frozenset(_OTHER_WORDS.split())


class Description(NamedTuple):
    """The leads of a record, and where they are in its source."""

    channels: list[int]
    lead_names: list[str]
    units: list[str | None]  # empty = neither source nor caller says
    sampling_rate: float
    left_out: dict[str, str]  # name of a channel and the reason


def describe(
    raw: RawEcg,
    source: str,
    *,
    lead_names: Sequence[str] | None = None,
    sampling_rate: float | None = None,
    units: str | Sequence[str] | None = None,
    leads: Sequence[str] | None = None,
    channels: Sequence[int | str] | None = None,
) -> Description:
    """What a source and the caller say together; the caller wins.  For the arguments see `reading_ecg.read_ecg`.

    Raises:
        EcgReadError: names or rate are not known, or do not fit.
    """
    count = len(raw.signal) if isinstance(raw.signal, list) or np.ndim(raw.signal) else 0
    given_names: Sequence[str] | None = [lead_names] if isinstance(lead_names, str) else lead_names
    given_units = [units] if isinstance(units, str) else units
    own = [raw.lead_names] if isinstance(raw.lead_names, str) else raw.lead_names
    called = own if given_names is None or (len(own) and len(given_names) != count) else given_names
    if not len(called):
        raise EcgReadError(f"{source}: does not say its lead names: pass lead_names=('I', 'II', ...)")
    names = [str(name or "").strip() for name in called]
    if isinstance(raw.signal, np.ndarray):
        check_shape(raw.signal, names, source)
    known: list[str | None] = [raw.units] * count if isinstance(raw.units, str) else list(raw.units)
    known = list(given_units) if given_units is not None and len(given_units) == count else known
    if len(known) not in (0, count):
        raise EcgReadError(f"{source}: {len(known)} units for {count} leads")
    rates = raw.sampling_rate if isinstance(raw.sampling_rate, list) else [raw.sampling_rate] * count

    kinds = [(rate, len(channel)) for rate, channel in zip(rates, raw.signal, strict=True)]
    kept, left_out = _choose(names, known or [None] * count, kinds, source, leads, channels)
    names = [lead_name(names[i]) for i in kept]
    if given_names is not None and len(given_names) != count:
        names = [lead_name(str(name)) for name in given_names]
        if len(names) != len(kept):
            raise EcgReadError(f"{source}: {len(names)} lead names for {len(kept)} leads of {count} channels")
    if not all(names):
        raise EcgReadError(f"{source}: does not say its lead names: pass lead_names=('I', 'II', ...)")
    known = [known[i] for i in kept] if known else []
    if given_units is not None and len(given_units) != count:
        known = [*(list(given_units) * (len(kept) if len(given_units) == 1 else 1))]
        if len(known) != len(kept):
            raise EcgReadError(f"{source}: {len(known)} units for {len(kept)} leads")
    sampling_rate = kinds[kept[0]][0] if sampling_rate is None else sampling_rate
    if sampling_rate is None:
        raise EcgReadError(f"{source}: does not say its sampling rate: pass sampling_rate= in Hz")
    return Description(kept, names, known, sampling_rate, left_out)


def _choose(
    names: Sequence[str],
    units: Sequence[str | None],
    kinds: Sequence[tuple[float | None, int]],
    source: str,
    leads: Sequence[str] | None = None,
    channels: Sequence[int | str] | None = None,
) -> tuple[list[int], dict[str, str]]:
    """Which channels of a source are the ECG, and why the others, by name, are left out.

    Unless `leads` or `channels` choose, these are the standard leads and whatever else may be an ECG: in a unit of
    voltage or in none, with no name of another signal, at the rate of the standard leads.  `kinds` are the sampling
    rate and the number of samples of each channel.

    Raises:
        EcgReadError: a chosen lead is not there, or the leads differ in sampling rate.
    """
    labels = [name or f"channel {number}" for number, name in enumerate(names)]
    chosen = channels if leads is None else leads
    left_out: dict[str, str] = {}
    if chosen is not None:
        if leads is not None and channels is not None:
            raise EcgReadError(f"{source}: pass leads= or channels=, not both")
        kept = [_find(choice, names, source) for choice in chosen]
    else:
        standard = [lead_name(name) in STANDARD_LEADS for name in names]
        for label, name, unit, ecg in zip(labels, names, units, standard, strict=True):
            if not ecg and unit and not is_voltage(unit):
                left_out[label] = f"in {unit}"
            elif not ecg and is_other_signal(name):
                left_out[label] = "no ECG by its name"
        kept = [i for i, label in enumerate(labels) if label not in left_out]
        if not kept:
            kept, left_out = list(range(len(names))), {}
        main = {kinds[i] for i in kept if standard[i]}
        if len(main) == 1:
            left_out |= {labels[i]: f"{kinds[i][1]} samples at {kinds[i][0]} Hz" for i in kept if kinds[i] not in main}
            kept = [i for i in kept if kinds[i] in main]
    if len({kinds[i] for i in kept}) > 1:
        found = ", ".join(f"{labels[i]}: {kinds[i][1]} samples at {kinds[i][0]} Hz" for i in kept)
        raise EcgReadError(f"{source}: the leads differ in sampling rate ({found}): choose those of one with leads=")
    return kept, left_out


def _find(choice: str | int, names: Sequence[str], source: str) -> int:
    """The number of the channel that `choice` names or numbers (from 0)."""
    if isinstance(choice, str):
        for spell in (str, lead_name, lambda name: name.strip().lower()):
            found = [i for i, name in enumerate(names) if spell(name) == spell(choice)]
            if len(found) == 1:
                return found[0]
    elif 0 <= choice < len(names):
        return int(choice)
    channels = ", ".join(f"{number} {name}" for number, name in enumerate(names))
    raise EcgReadError(f"{source}: has no one channel {choice!r}; its channels are {channels[:500]}")


def is_other_signal(name: str) -> bool:
    """Whether a channel's name says that it is no ECG but a pressure, a respiration, a marker or the like."""
    words = lead_words(re.sub(r"[()\[\],]", " ", str(name).lower()))
    return any(word in _OTHERS or word.rstrip("0123456789") in _OTHERS for word in words)
