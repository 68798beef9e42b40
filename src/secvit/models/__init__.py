"""The backbones.  Importing this registers them with timm."""

from secvit.models.evit_deit import EViTDeiT
from secvit.models.patched_vit import vit_sec_patched
from secvit.models.saved import Loaded, load_pretrained
from secvit.models.sec_deit import SECDeiT
from secvit.models.sec_swin import SECSwin
from secvit.models.secvit import SECViT

__all__ = ["EViTDeiT", "Loaded", "SECDeiT", "SECSwin", "SECViT", "load_pretrained", "vit_sec_patched"]
