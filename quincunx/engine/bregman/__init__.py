"""Bregman geometry: Legendre functions, their proximity operators, and mirror maps of models."""

from quincunx.engine.bregman.geometry import Entropy as Entropy
from quincunx.engine.bregman.geometry import Geometry as Geometry
from quincunx.engine.bregman.legendre import Barrier as Barrier
from quincunx.engine.bregman.legendre import BoltzmannShannon as BoltzmannShannon
from quincunx.engine.bregman.legendre import BoxBarrier as BoxBarrier
from quincunx.engine.bregman.legendre import Burg as Burg
from quincunx.engine.bregman.legendre import Exponential as Exponential
from quincunx.engine.bregman.legendre import FermiDirac as FermiDirac
from quincunx.engine.bregman.legendre import Hellinger as Hellinger
from quincunx.engine.bregman.legendre import Hypentropy as Hypentropy
from quincunx.engine.bregman.legendre import Legendre as Legendre
from quincunx.engine.bregman.legendre import Squared as Squared
