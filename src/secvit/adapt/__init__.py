"""SEC in models that exist already: one line to put it in, one to take it out, weights untouched."""

from secvit.adapt.attend import ClusteredAttention
from secvit.adapt.later import follow_transformers
from secvit.adapt.patching import patch, unpatch

__all__ = ["ClusteredAttention", "patch", "unpatch"]

follow_transformers()
