"""vLLM's plug-in (entry point group `vllm.general_plugins`)."""

from __future__ import annotations


def register() -> None:
    """Make our LLaVA known to vLLM, in each of its processes: it calls this, as often as it likes.

    The configs and processors are transformers' business, and known since secvit.vlm was imported.
    """
    from vllm import ModelRegistry

    ModelRegistry.register_model("SecLlavaForConditionalGeneration", "secvit.vlm.serving.vllm:SecLlava")
