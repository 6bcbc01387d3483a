"""From a density to a Fit. Knows nothing of the language."""

from quincunx.inference.checkpoint import Checkpoint as Checkpoint
from quincunx.inference.checkpoint import CheckpointError as CheckpointError
from quincunx.inference.fit import Fit as Fit
from quincunx.inference.fit import load as load
from quincunx.inference.handle import Run as Run
from quincunx.inference.handle import Status as Status
from quincunx.inference.method import Info as Info
from quincunx.inference.method import Kernel as Kernel
from quincunx.inference.method import Kind as Kind
from quincunx.inference.method import Machine as Machine
from quincunx.inference.method import Method as Method
from quincunx.inference.methods import NUTS as NUTS
from quincunx.inference.methods import SGHMC as SGHMC
from quincunx.inference.methods import SGLD as SGLD
from quincunx.inference.methods import SGNHT as SGNHT
from quincunx.inference.methods import EllipticalSlice as EllipticalSlice
from quincunx.inference.methods import HitAndRunSlice as HitAndRunSlice
from quincunx.inference.methods import PolarSlice as PolarSlice
from quincunx.inference.moments import Moments as Moments
from quincunx.inference.registry import applicable as applicable
from quincunx.inference.registry import methods as methods
from quincunx.inference.registry import register as register
from quincunx.inference.run import infer as infer
from quincunx.inference.session import Progress as Progress
from quincunx.inference.stopping import Until as Until
from quincunx.inference.store import StoreError as StoreError
