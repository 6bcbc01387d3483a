"""Time two functions in turn, so that a machine whose speed drifts still gives a fair ratio."""

import statistics
import time


def cpu_seconds(fn):
    """Processor seconds of one call, all threads together."""
    began = time.process_time()
    fn()
    return time.process_time() - began


def interleaved(first, second, rounds=15):
    """Medians of both, and the median of the ratios first / second, over rounds A B B A ..."""
    pairs = []
    for index in range(rounds):
        if index % 2:
            b, a = cpu_seconds(second), cpu_seconds(first)
        else:
            a, b = cpu_seconds(first), cpu_seconds(second)
        pairs.append((a, b))
    ratio = statistics.median(a / b for a, b in pairs)
    return (*(statistics.median(column) for column in zip(*pairs, strict=True)), ratio)
