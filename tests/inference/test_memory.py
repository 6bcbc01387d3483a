"""Memory is that of the devices where they have their own, and of the process otherwise."""

from types import SimpleNamespace

import numpy as np
import pytest

from quincunx.inference.memory import watched

MIB = 2**20


class Device:
    """An accelerator whose memory a test fills."""

    platform = "gpu"

    def __init__(self, now=10 * MIB, most=50 * MIB):
        self.stats = {"bytes_in_use": now, "peak_bytes_in_use": most}

    def memory_stats(self):
        return dict(self.stats)


def test_the_process_grows_on_a_processor():
    kept, grown = watched(lambda: np.ones(40 * MIB // 8))
    assert kept.nbytes == 40 * MIB
    assert 35 < grown < 80


def test_a_new_peak_of_a_device_is_told_by_the_device():
    device = Device()

    def work():
        device.stats["peak_bytes_in_use"] = 70 * MIB

    assert watched(work, [device])[1] == pytest.approx(60)


def test_what_stays_below_an_old_peak_is_what_was_seen():
    first, second = Device(), Device(now=MIB)

    def work():
        first.stats["bytes_in_use"] += 5 * MIB
        second.stats["bytes_in_use"] += 2 * MIB

    assert watched(work, [first, second])[1] == pytest.approx(7)


def test_devices_that_do_not_tell_have_no_figure():
    silent = SimpleNamespace(platform="tpu", memory_stats=lambda: None)
    result, grown = watched(lambda: "done", [silent])
    assert result == "done"
    assert np.isnan(grown)
