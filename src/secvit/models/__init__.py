"""The backbones.  Importing this registers them with timm."""

from secvit.models.secvit import SECViT

__all__ = ["SECViT"]
