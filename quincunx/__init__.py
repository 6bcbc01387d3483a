"""Quincunx: one model, many samplers, one honest answer."""

from quincunx import distributions as distributions
from quincunx import models as models
from quincunx.config import configure as configure
from quincunx.engine import Density as Density
from quincunx.engine import MethodError as MethodError
from quincunx.engine import ModelError as ModelError
from quincunx.engine import ModelWarning as ModelWarning
from quincunx.engine import QuincunxError as QuincunxError
from quincunx.engine import compile as compile
from quincunx.engine import deterministic as deterministic
from quincunx.engine import explain as explain
from quincunx.engine import factor as factor
from quincunx.engine import from_log_density as from_log_density
from quincunx.engine import model as model
from quincunx.engine import on_disk as on_disk
from quincunx.engine import plate as plate
from quincunx.engine import sample as sample
from quincunx.inference import NUTS as NUTS
from quincunx.inference import SGHMC as SGHMC
from quincunx.inference import SGLD as SGLD
from quincunx.inference import SGNHT as SGNHT
from quincunx.inference import Checkpoint as Checkpoint
from quincunx.inference import CheckpointError as CheckpointError
from quincunx.inference import EllipticalSlice as EllipticalSlice
from quincunx.inference import Fit as Fit
from quincunx.inference import HitAndRunSlice as HitAndRunSlice
from quincunx.inference import Info as Info
from quincunx.inference import Kernel as Kernel
from quincunx.inference import Kind as Kind
from quincunx.inference import Machine as Machine
from quincunx.inference import Method as Method
from quincunx.inference import Moments as Moments
from quincunx.inference import PolarSlice as PolarSlice
from quincunx.inference import Progress as Progress
from quincunx.inference import Run as Run
from quincunx.inference import Status as Status
from quincunx.inference import StoreError as StoreError
from quincunx.inference import StructuredSGLD as StructuredSGLD
from quincunx.inference import Until as Until
from quincunx.inference import applicable as applicable
from quincunx.inference import infer as infer
from quincunx.inference import load as load
from quincunx.inference import methods as methods
from quincunx.inference import register as register

__version__ = "0.1.0"
