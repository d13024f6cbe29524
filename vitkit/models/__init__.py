"""Whole models."""

from vitkit.models.config import VARIANTS as VARIANTS
from vitkit.models.config import ViTConfig as ViTConfig
from vitkit.models.vit import ViT as ViT
