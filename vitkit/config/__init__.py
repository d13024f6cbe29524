"""Configuration: TOML, ``--set`` and flags, checked as a whole and turned into objects."""

from vitkit.config.build import Parts as Parts
from vitkit.config.build import build as build
from vitkit.config.build import load_data as load_data
from vitkit.config.load import dumps as dumps
from vitkit.config.load import load as load
from vitkit.config.load import recipe as recipe
from vitkit.config.load import recipes as recipes
from vitkit.config.preflight import preflight as preflight
from vitkit.config.resolve import resolved as resolved
from vitkit.config.run import RunConfig as RunConfig
from vitkit.config.spec import Spec as Spec
from vitkit.config.spec import parse_spec as parse_spec
