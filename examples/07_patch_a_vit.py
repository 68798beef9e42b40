"""You learn to put SEC into a ViT that exists: one line in, one line out, its weights untouched.

    python 07_patch_a_vit.py

It pays where there are many tokens: `secvit patch-report MODEL --size 224 448 896` says from which size on.
"""

import timm
import torch

import secvit

torch.manual_seed(0)
# any plain ViT of timm; take pretrained=True where there is a network, here the weights are random
model = timm.create_model("deit_tiny_patch16_224", depth=4, img_size=448, num_classes=10).eval()
images = torch.randn(2, 3, 448, 448)
with torch.inference_mode():
    before = model(images)

# 784 patch tokens in clusters of at most 98; [cls] stays outside, is seen by all and sees all
secvit.patch(model, cluster_size=98)
with torch.inference_mode():
    clustered = model(images)
print("cosine of the logits, before and after:", float(torch.cosine_similarity(before, clustered).mean()))

# the state dict is the same, so weights load either way; training works as before
model.train()
torch.nn.functional.cross_entropy(model(images), torch.tensor([3, 7])).backward()
print("every parameter has a gradient:", all(p.grad is not None for p in model.parameters()))

# out again: the same outputs, to the bit
secvit.unpatch(model.eval())
with torch.inference_mode():
    print("unpatched is what it was:", torch.equal(model(images), before))

# cheaper where neighbouring layers see the same things: two layers by one order, tokens moved once for both
secvit.patch(model, cluster_size=98, share_order_every=2, layers=range(2, 4))
with torch.inference_mode():
    print("two layers by one order:", tuple(model(images).shape))
secvit.unpatch(model)


# an attention of your own: call ClusteredAttention where you called scaled_dot_product_attention
class MyAttention(torch.nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv = heads, torch.nn.Linear(dim, 3 * dim)
        self.attend = secvit.ClusteredAttention(secvit.Clustering(cluster_size=98))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.attend(q, k, v).transpose(1, 2).flatten(2)


print("your own:", tuple(MyAttention(64, 4)(torch.randn(2, 784, 64)).shape))
