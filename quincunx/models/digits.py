r"""Digits: a softmax classifier, 650 weights.

\[ W_{jk} \sim N(0, 1), \qquad
   P(y_n = k) = \frac{\exp(x_n \cdot W_{\cdot k})}{\sum_l \exp(x_n \cdot W_{\cdot l})},
   \quad k = 0, \dots, 9, \]

with \(x\) a column of ones and the 64 pixels of an 8 x 8 image, divided by 8 and less 1, so that
they are between -1 and 1. Only differences between the columns of \(W\) enter the likelihood:
their sum keeps its prior.

Data: 1 797 handwritten digits, from scikit-learn (UCI, CC BY 4.0). Reference: none; judge it by
held-out prediction, or against a long run.
"""

import numpy as np

from quincunx import distributions as dist
from quincunx.engine import model, plate, sample
from quincunx.models._data import package, with_ones
from quincunx.models._registry import Reference, Worked, register

_CLASSES = 10


@model
def softmax_regression(X, y=None):
    """Standard normal weights and categorical outcomes, on a data plate of images."""
    prior = dist.Normal(0.0, 1.0).expand([X.shape[1], _CLASSES]).to_event(2)
    weights = sample("weights", prior, dims=["pixel", "digit"])
    with plate("image", X, y) as (x, digit):
        sample("y", dist.CategoricalLogits(x @ weights), obs=digit)


@register
def digits() -> Worked:
    """Softmax regression of handwritten digits on 8 x 8 pixels (1 797 images, 650 weights)."""
    bunch = package("sklearn.datasets").load_digits()
    data = {"X": with_ones(bunch.data / 8.0 - 1.0), "y": bunch.target.astype(np.int32)}
    return Worked(softmax_regression, data, Reference(source="none"))
