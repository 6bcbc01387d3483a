"""One method per file."""

from quincunx.inference.methods.admm import ADMM as ADMM
from quincunx.inference.methods.annealed_smc import AnnealedSMC as AnnealedSMC
from quincunx.inference.methods.bregman_langevin import BregmanLangevin as BregmanLangevin
from quincunx.inference.methods.consensus import Consensus as Consensus
from quincunx.inference.methods.decentralized_sgld import DecentralizedSGLD as DecentralizedSGLD
from quincunx.inference.methods.diffusion import CMCD as CMCD
from quincunx.inference.methods.diffusion import DDS as DDS
from quincunx.inference.methods.diffusion import DGFS as DGFS
from quincunx.inference.methods.diffusion import DIS as DIS
from quincunx.inference.methods.diffusion import PIS as PIS
from quincunx.inference.methods.diffusion import SCLD as SCLD
from quincunx.inference.methods.diffusion import DiffusionSampler as DiffusionSampler
from quincunx.inference.methods.diffusion import TrajectoryBalance as TrajectoryBalance
from quincunx.inference.methods.elliptical_slice import EllipticalSlice as EllipticalSlice
from quincunx.inference.methods.ensemble import EnsembleSampler as EnsembleSampler
from quincunx.inference.methods.federated_sgld import FederatedSGLD as FederatedSGLD
from quincunx.inference.methods.hit_and_run_slice import HitAndRunSlice as HitAndRunSlice
from quincunx.inference.methods.nuts import NUTS as NUTS
from quincunx.inference.methods.polar_slice import PolarSlice as PolarSlice
from quincunx.inference.methods.proximal_mala import ProximalMALA as ProximalMALA
from quincunx.inference.methods.sghmc import SGHMC as SGHMC
from quincunx.inference.methods.sgld import SGLD as SGLD
from quincunx.inference.methods.sgnht import SGNHT as SGNHT
from quincunx.inference.methods.structured_sgld import StructuredSGLD as StructuredSGLD
