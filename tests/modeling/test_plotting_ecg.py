import io

import matplotlib.image
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from ecgformers.modeling.leads_ecg import STANDARD_LEADS
from ecgformers.modeling.plotting_ecg import plot_ecg
from ecgformers.modeling.reading_ecg import read_ecg
from ecgformers.modeling.record_ecg import EcgRecord

PIXELS_PER_MM = 10


def record_of(seconds=10.0, leads=STANDARD_LEADS, rate=500.0, signal=None) -> EcgRecord:
    if signal is None:
        signal = np.random.default_rng(0).normal(scale=0.2, size=(len(leads), round(seconds * rate)))
    return EcgRecord(signal, tuple(leads), rate, source="/data/rec 1.hea")


def render(figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=25.4 * PIXELS_PER_MM)
    buffer.seek(0)
    return matplotlib.image.imread(buffer)[..., :3]  # (rows, columns, RGB)


def lines(figure, name: str) -> list[np.ndarray]:
    """Points of the lines called `name`, in mm of the printed page."""
    axes = figure.axes[0]
    to_mm = 25.4 / figure.dpi
    found = [line for line in axes.lines if line.get_gid() == name]
    return [axes.transData.transform(line.get_xydata()) * to_mm for line in found]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.fixture(scope="module")
def sheet():
    return plot_ecg(read_ecg(get_testdata_file("waveform_ecg.dcm")), heart_rate=60.85)


def test_time_and_voltage_are_to_scale(sheet):
    record = read_ecg(get_testdata_file("waveform_ecg.dcm"))
    strip = max(lines(sheet, "lead II"), key=len)
    assert np.ptp(strip[:, 0]) == pytest.approx(25 * 9.999)  # 10,000 samples at 1000 Hz
    np.testing.assert_allclose(strip[:, 1] - strip[0, 1], 10 * (record.signal[1] - record.signal[1, 0]), atol=1e-6)


def test_calibration_pulse_is_one_millivolt_for_a_fifth_of_a_second(sheet):
    pulses = lines(sheet, "calibration")
    assert len(pulses) == 4
    for pulse in pulses:
        assert np.ptp(pulse[:, 1]) == pytest.approx(10)
        assert np.ptp(pulse[pulse[:, 1] > pulse[:, 1].mean(), 0]) == pytest.approx(5)


def test_printed_grid_has_a_line_each_millimetre_and_a_bold_one_each_fifth():
    image = render(plot_ecg(record_of(signal=np.zeros((12, 5000)))))
    row = 1 - image[-round((12 + 2.5) * PIXELS_PER_MM), :, 1]  # redness along a line between two grid lines
    inside = row[10 * PIXELS_PER_MM : 275 * PIXELS_PER_MM].reshape(265, PIXELS_PER_MM)  # one millimetre a row
    ink = np.roll(inside.ravel(), PIXELS_PER_MM // 2).reshape(265, PIXELS_PER_MM)[1:].sum(axis=1)
    bold = np.arange(1, 265) % 5 == 0
    assert ink[~bold].min() > 0.05 and ink[bold].min() > 1.5 * ink[~bold].max()
    assert image.shape[:2] == (172 * PIXELS_PER_MM, 285 * PIXELS_PER_MM)


def test_leads_stand_where_a_clinician_looks_for_them(sheet):
    order = [["I", "aVR", "V1", "V4"], ["II", "aVL", "V2", "V5"], ["III", "aVF", "V3", "V6"]]
    heights = []
    for names in order:
        starts = [min(lines(sheet, f"lead {name}"), key=len)[0, 0] for name in names]
        np.testing.assert_allclose(np.diff(starts), 62.5)
        pulses = sorted((pulse[0, 1] for pulse in lines(sheet, "calibration")), reverse=True)
        heights.append([np.median(min(lines(sheet, f"lead {name}"), key=len)[:, 1]) for name in names])
    np.testing.assert_allclose(heights, np.repeat(np.array(pulses[:3])[:, None], 4, axis=1), atol=1e-6)
    assert [text for text in texts(sheet) if text in STANDARD_LEADS][-1] == "II"  # the rhythm strip


def test_columns_follow_each_other_in_time(sheet):
    record = read_ecg(get_testdata_file("waveform_ecg.dcm"))
    (v4,) = lines(sheet, "lead V4")
    expected = record.signal[9, 7500:10000]
    np.testing.assert_allclose(v4[:, 1] - v4[0, 1], 10 * (expected - expected[0]), atol=1e-6)


def test_header_and_footer(sheet):
    shown = texts(sheet)
    assert "waveform_ecg.dcm" in shown
    assert "0 to 10 s of 10 s     1000 Hz     61 beats/min" in shown
    assert any("25 mm/s     10 mm/mV" in text for text in shown)
    assert "Research use only, not a medical device" in shown


def test_short_or_unusual_records_are_stacked_in_their_own_order():
    figure = plot_ecg(record_of(7.3, ("V1", "MLII", "X")), title="a\n$b_{ $")
    assert texts(figure)[:3] == ["V1", "MLII", "X"]
    tops = [lines(figure, f"lead {name}")[0][:, 1].mean() for name in ("V1", "MLII", "X")]
    assert tops == sorted(tops, reverse=True)
    assert "a $b_{ $" in texts(figure) and render(figure).shape[1] == 2850  # same paper, no mathematics in titles
    assert len(lines(plot_ecg(record_of(7.3)), "calibration")) == 12
    assert len(lines(plot_ecg(record_of(10.0)), "calibration")) == 4


def test_a_later_start_shows_a_later_part():
    record = record_of(30.0)
    figure = plot_ecg(record, start=12.5)
    strip = max(lines(figure, "lead II"), key=len)
    expected = record.signal[1, 6250:11250]
    np.testing.assert_allclose(strip[:, 1] - strip[0, 1], 10 * (expected - expected[0]), atol=1e-6)
    assert "12.5 to 22.5 s of 30 s     500 Hz" in texts(figure)


def test_missing_leads_and_gaps_are_said():
    signal = np.random.default_rng(0).normal(size=(2, 5000))
    signal[1, :2500] = np.nan
    figure = plot_ecg(record_of(leads=("I", "V4"), signal=signal), layout="3x4")
    assert texts(figure).count("not recorded") == 11  # ten leads, and the rhythm strip
    figure = plot_ecg(record_of(leads=("V1", "V4"), signal=np.full((2, 5000), np.nan)))
    assert texts(figure).count("no signal") == 2


def test_traces_stay_on_the_paper():
    image = render(plot_ecg(record_of(leads=("I",), signal=np.tile([[0.0, 99.0, -99.0]], 1500))))
    darkness = 1 - image.max(axis=2)
    header, footer = darkness[: 2 * PIXELS_PER_MM], darkness[-2 * PIXELS_PER_MM :]
    assert header.max() < 0.1 and footer.max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "6x2"}, "layout must be 'auto', '3x4' or 'stacked', not '6x2'"),
        ({"start": 10.0}, "start must be in the record's 10 s, not 10"),
        ({"start": -1.0}, "not -1"),
        ({"start": float("nan")}, "not nan"),
    ],
)
def test_impossible_sheets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plot_ecg(record_of(), **options)
