"""The monitor: an exact test, one error budget over all looks, and words that do not claim too much."""

import math

import pytest
import torch
from scipy.stats import ks_2samp

from medfedpure.core.errors import CalibrationError, ConfigError, InputError
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.monitor import KEPT, Monitor
from medfedpure.figures.kolmogorov_smirnov import kolmogorov_smirnov_gap, kolmogorov_smirnov_p_value


@pytest.mark.parametrize(("n", "m", "shift"), [(20, 20, 0.0), (37, 20, 0.5), (60, 25, 1.0), (100, 50, 0.2)])
def test_p_values_agree_with_scipy(n, m, shift):
    generator = torch.Generator().manual_seed(n)
    first, second = torch.randn(n, generator=generator), torch.randn(m, generator=generator) + shift
    wanted = ks_2samp(first.numpy(), second.numpy(), method="exact")
    gap = kolmogorov_smirnov_gap(first, second)
    assert gap / (n * m) == pytest.approx(wanted.statistic)
    assert kolmogorov_smirnov_p_value(gap, n, m) == pytest.approx(wanted.pvalue, rel=1e-6)


def test_without_drift_alarms_keep_to_their_budget():
    generator, alarms, streams = torch.Generator().manual_seed(0), 0, 300
    for _ in range(streams):
        monitor = Monitor(Calibration.fit(torch.randn(40, generator=generator)), window=20, false_alarm=0.1)
        alarms += any(look.drifted for look in monitor.observe(torch.randn(100, generator=generator)))
    # Binomial(300, 0.1) exceeds 43 once in two hundred.
    assert 0 < alarms <= 43, f"{alarms} of {streams} streams without drift raised an alarm at a budget of 10 %"


def test_looks_share_the_budget():
    monitor = Monitor(Calibration.fit(torch.linspace(0, 1, 60)), window=10, false_alarm=0.05)
    monitor.observe(torch.rand(200, generator=torch.Generator().manual_seed(1)))
    levels = [look.level for look in monitor.looks]
    assert len(levels) == 20
    assert sum(levels) < 0.05
    assert levels[0] == pytest.approx(0.05 * 6 / math.pi**2)
    assert levels[3] == pytest.approx(levels[0] / 16)


def test_a_shift_is_seen_and_not_explained():
    monitor = Monitor(Calibration.fit(torch.linspace(0, 1, 100)), window=40)
    (look,) = monitor.observe(torch.linspace(0.5, 1.5, 40))
    assert look.drifted
    assert "shift or attack, scores cannot tell which" in look.describe()
    assert "no drift seen" in monitor.observe(torch.linspace(0, 1, 40))[0].describe()


def test_windows_do_not_depend_on_batches():
    scores = torch.rand(130, generator=torch.Generator().manual_seed(2))
    whole, split = (Monitor(Calibration.fit(torch.rand(50)), window=40) for _ in range(2))
    split.calibration = whole.calibration
    whole.observe(scores)
    for part in scores.split(7):
        split.observe(part)
    assert whole.looks == split.looks
    assert len(whole.looks) == 3


def test_of_a_stream_without_end_the_last_looks_are_remembered_and_all_are_counted():
    monitor = Monitor(Calibration.fit(torch.linspace(0, 1, 60)), window=10, false_alarm=0.05)
    due = monitor.observe(torch.rand(10 * (KEPT + 7), generator=torch.Generator().manual_seed(3)))
    assert (len(due), monitor.count, len(monitor.looks)) == (KEPT + 7, KEPT + 7, KEPT)
    assert list(monitor.looks) == due[7:]
    assert monitor.looks[-1].number == KEPT + 7
    assert monitor.looks[-1].level == pytest.approx(due[0].level / (KEPT + 7) ** 2)


def test_nan_counts_as_the_largest_score():
    calibration = torch.linspace(0, 1, 50)
    assert kolmogorov_smirnov_gap(calibration, torch.full((10,), math.nan)) == 500


def test_what_cannot_work_is_refused():
    calibration = Calibration.fit(torch.linspace(0, 1, 100))
    with pytest.raises(ConfigError, match="at least 2"):
        Monitor(calibration, window=1)
    with pytest.raises(ConfigError, match="false_alarm must lie"):
        Monitor(calibration, false_alarm=0.0)
    with pytest.raises(CalibrationError, match="could never raise an alarm"):
        Monitor(calibration, window=2, false_alarm=1e-6)
    with pytest.raises(InputError, match="shape"):
        Monitor(calibration).observe(torch.zeros(3, 1))
