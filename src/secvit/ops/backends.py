"""Eq. 4 inside clusters that lie ready in memory: softmax attention, and what computes it.

"sdpa" is torch's fused kernel, "math" a softmax of a product, "triton" this package's kernels on a GPU
(`secvit.ops.triton`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from secvit.ops.order import Plan, exporting
from secvit.ops.products import has_fast_product, product

BACKENDS = ("auto", "sdpa", "math", "reference", "triton")
# tokens a cluster up to which "auto" takes the fused kernel: none until a GPU has passed `make bench-gpu`, with 256
TRITON_SIZE = 0
# keys up to which plain products beat torch's fused kernel on a CPU: in half precision, and in training on oneDNN
SHORT_ON_CPU = 256


@dataclass(frozen=True)
class Options:
    """How Eq. 4 is computed, for all clusters alike.

    scale: factor of the products of queries and keys.
    backend: one of `BACKENDS`, "reference" apart.
    num_prefix_tokens: P tokens in front that are outside the partition, see `secvit.sec_attention`.
    dropout_p: dropout of the attention weights.
    near, far: the clusters that each attends to, see `secvit.sec_attention`.
    """

    scale: float
    backend: str = "auto"
    num_prefix_tokens: int = 0
    dropout_p: float = 0.0
    near: int = 1
    far: bool = False

    @property
    def inside(self) -> bool:
        """Whether clusters attend to themselves only, as in the paper."""
        return self.near == 1 and not self.far


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, options: Options, mask: Tensor | None = None) -> Tensor:
    """Eq. 4: softmax(q k^T scale) v on 4-D tensors.  q (S, M, Nq, D), k v (S, M, N, D), mask (S, M, 1, N).

    mask: True for keys that are seen; or numbers, which are added to the scores.
    """
    if _takes_products(q, k, v, options, mask):
        return product(torch.softmax(product(q * options.scale, k.transpose(-2, -1)), dim=-1), v)
    if _takes_sdpa(q, k, options.backend):
        return _sdpa(q, k, v, options, mask)
    weights = _weights(q, k, options.scale, mask)
    return (F.dropout(weights, options.dropout_p) if options.dropout_p > 0 else weights) @ v


def _takes_products(q: Tensor, k: Tensor, v: Tensor, options: Options, mask: Tensor | None) -> bool:
    """Whether "auto" trains by plain products on oneDNN: torch's fused kernel has MKL inside."""
    if options.backend != "auto" or mask is not None or options.dropout_p > 0 or k.shape[-2] > SHORT_ON_CPU:
        return False
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return trains and has_fast_product(q, k, v)


def _takes_sdpa(q: Tensor, k: Tensor, backend: str) -> bool:
    if backend != "auto":
        return backend == "sdpa"
    short = k.shape[-2] <= SHORT_ON_CPU and q.device.type == "cpu"
    return not (short and q.dtype in (torch.bfloat16, torch.float16))


def _weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    scores = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, dim=-1).to(q.dtype)  # a float32 mask widens half precision


def _sdpa(q: Tensor, k: Tensor, v: Tensor, options: Options, mask: Tensor | None) -> Tensor:
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=options.dropout_p, scale=options.scale
    )  # fmt: skip
    if torch.compiler.is_exporting():  # ExecuTorch lowers to a kernel whose output has other strides: views would fail
        return out.clone(memory_format=torch.contiguous_format)
    if options.dropout_p == 0 and torch.is_grad_enabled() and not torch.compiler.is_compiling() and out.requires_grad:
        return _TwiceDifferentiable.apply(out, q, k, v, mask, options.scale)
    return out


class _TwiceDifferentiable(torch.autograd.Function):
    """The identity on what SDPA gives.  A backward with create_graph=True goes by plain products instead.

    torch's fused kernels have no second derivative; an ordinary backward still goes through them.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:  # fmt: skip
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, float], output: Tensor) -> None:
        _, q, k, v, mask, ctx.scale = inputs
        ctx.save_for_backward(q, k, v, mask)

    @staticmethod
    def backward(ctx, grad: Tensor):
        if not torch.is_grad_enabled():
            return grad, None, None, None, None, None
        q, k, v, mask = ctx.saved_tensors
        weights = _weights(q, k, ctx.scale, mask)
        by_weight = grad @ v.transpose(-2, -1)
        by_logit = weights * (by_weight - (by_weight * weights).sum(dim=-1, keepdim=True))
        by_mask = by_logit.sum_to_size(mask.shape) if ctx.needs_input_grad[4] else None
        by_score = by_logit * ctx.scale
        return None, by_score @ k, by_score.transpose(-2, -1) @ q, weights.transpose(-2, -1) @ grad, by_mask, None


def check_near(near: int, far: bool) -> None:
    """A ValueError unless `near` is a number of clusters and `far` a bool."""
    if not isinstance(near, int) or isinstance(near, bool) or near < 1:
        raise ValueError(f"near={near!r}; choose a whole number >= 1: a cluster is among those that it attends to")
    if not isinstance(far, bool):
        raise ValueError(f"far={far!r}; choose True or False")


# -- fused kernels on a GPU ------------------------------------------------------------------------


def takes_triton(options: Options, q: Tensor, k: Tensor, v: Tensor, num_clusters: int, max_size: int) -> bool:
    """Whether the fused kernels are what `options.backend` asks for; ValueError where it is asked for and cannot."""
    if options.backend == "auto":
        small = num_clusters > 1 and max_size <= TRITON_SIZE
        if q.device.type != "cuda" or not small or exporting():
            return False
    elif options.backend != "triton":
        return False
    problem = _unfit(options, q, k, v) or triton_problem(q.device)
    if problem is not None and options.backend == "triton":
        raise ValueError(f'backend="triton" {problem}; use backend="auto"')
    return problem is None


def _unfit(options: Options, q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernels cannot compute this on any device, or None."""
    dtypes = {autocast_dtype(x) for x in (q, k, v)}
    if options.dropout_p:
        return "takes no dropout"
    if q.shape[-1] > 128 or v.shape[-1] != q.shape[-1]:
        return f"needs q, k and v of one width up to 128, not {q.shape[-1]} and {v.shape[-1]}"
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        return f"needs q, k and v all in float32, bfloat16 or float16, not {q.dtype}, {k.dtype} and {v.dtype}"
    return "cannot be exported" if exporting() else None


@torch.compiler.assume_constant_result
def triton_problem(device: torch.device) -> str | None:
    """Why triton cannot run on a device, or None; imports the kernels, which registers their operators."""
    try:
        from secvit.ops import triton
    except ImportError as error:
        return f"needs triton, which cannot be imported ({error}): pip install triton"
    if triton.INTERPRETED:
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"needs an NVIDIA GPU, or TRITON_INTERPRET=1 set before python starts, for tensors on {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    return None


def autocast_dtype(x: Tensor) -> torch.dtype:
    """What torch's own attention would cast x to."""
    kind = x.device.type
    casts = x.dtype != torch.float64 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if casts else x.dtype


def triton_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
    """Clusters of any sizes in one kernel; tokens in no cluster are neither read nor written.  (B, h, L, D)"""
    q, k, v = (x.to(autocast_dtype(x)) for x in (q, k, v))
    sizes = plan.unequal_sizes
    bounds = None if sizes is None else F.pad(sizes.cumsum(dim=-1), (1, 0))
    out, _ = torch.ops.secvit.attend_clusters(q, k, v, plan.order, bounds, plan.num_clusters, plan.max_size, scale)
    return out.transpose(1, 2)


def triton_near_far(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, seen: Tensor, far: tuple[Tensor, Tensor, Tensor] | None, parts: int,
    prefix: int, scale: float,
) -> Tensor:  # fmt: skip
    """What clusters see, read in place.  q k v (B, h, P + L, D) -> (B, P + L, h, D).

    far: keys, values and bias of summaries; all as in `secvit.ops.triton.near_far.attend_near_far`.
    """
    dtype = autocast_dtype(q)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    summaries = (None, None, None) if far is None else (far[0].to(dtype), far[1].to(dtype), far[2])
    sizes = plan.unequal_sizes
    bounds = None if sizes is None else F.pad(sizes.cumsum(dim=-1), (1, 0))
    out, _ = torch.ops.secvit.attend_near_far(
        q, k, v, plan.order, bounds, seen, *summaries, plan.num_clusters, plan.max_size, parts, prefix, scale
    )
    return out


def triton_packed_attention(qkv: Tensor, num_clusters: int, scale: float) -> Tensor:
    """Eqs. 1 to 4 in equal clusters of packed rows.  qkv (B, L, h, 3, D) -> (B, L, h, D)"""
    order = torch.ops.secvit.order_tokens(qkv[:, :, :, 1].transpose(1, 2).detach())
    packed = qkv.to(autocast_dtype(qkv))
    return torch.ops.secvit.attend_clusters_packed(packed, order, num_clusters, scale)[0]
