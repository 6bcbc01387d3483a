from quincunx import distributions as distributions
from quincunx.engine import *
from quincunx.engine import compile, explain, model, sample, plate, deterministic, factor, from_log_density, Density, ModelError
