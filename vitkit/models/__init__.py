"""Whole models."""

from vitkit.models.config import ViTConfig as ViTConfig
from vitkit.models.sizes import MODELS as MODELS
from vitkit.models.sizes import VARIANTS as VARIANTS
from vitkit.models.vit import ViT as ViT
