"""How much work and how much time: multiply-accumulates and interleaved speed comparisons."""

from secvit.measure.macs import Macs, count_macs

__all__ = ["Macs", "count_macs"]
