"""From a model to a density with structure. Knows nothing of samplers."""

from quincunx.engine.bare import from_log_density as from_log_density
from quincunx.engine.density import Density as Density
from quincunx.engine.density import compile as compile
from quincunx.engine.errors import MethodError as MethodError
from quincunx.engine.errors import ModelError as ModelError
from quincunx.engine.errors import ModelWarning as ModelWarning
from quincunx.engine.errors import QuincunxError as QuincunxError
from quincunx.engine.explain import explain as explain
from quincunx.engine.language import Model as Model
from quincunx.engine.language import deterministic as deterministic
from quincunx.engine.language import factor as factor
from quincunx.engine.language import model as model
from quincunx.engine.language import plate as plate
from quincunx.engine.language import sample as sample
from quincunx.engine.rows import Block as Block
from quincunx.engine.storage import on_disk as on_disk
