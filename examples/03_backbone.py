"""You learn to use SECViT like any backbone of timm: classifier, feature pyramid, any size.

python 03_backbone.py
"""

import timm
import torch

import secvit  # noqa: F401  registers the models with timm

torch.manual_seed(0)
print(", ".join(timm.list_models("secvit_*")))

# a classifier of ten classes
model = timm.create_model("secvit_tiny", num_classes=10)
print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
loss = torch.nn.functional.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([3, 7]))
loss.backward()
print(f"loss {loss.item():.2f}, every parameter has a gradient:", end=" ")
print(all(p.grad is not None for p in model.parameters()))

# a pyramid for detection and segmentation; sizes may change from call to call, and need not divide
pyramid = timm.create_model("secvit_tiny", features_only=True).eval()
with torch.inference_mode():
    for height, width in [(96, 128), (33, 65), (200, 134)]:
        shapes = [tuple(x.shape[1:]) for x in pyramid(torch.randn(1, 3, height, width))]
        print(f"{height} x {width}:", shapes)

# clusters: 32, 8, 2 in the paper, whatever the size of the image; a fixed cluster size instead
# keeps the cost linear in the number of pixels, with the same weights
by_size = timm.create_model("secvit_tiny", num_classes=10, cluster_size=98).eval()
by_size.load_state_dict(model.state_dict())
print("M of stage 1 at 448 px:", by_size.stages[0].blocks[0].attn.clustering.clusters_for(112 * 112))

# new classes, frozen body: the usual timm calls
model.reset_classifier(5)
for name, parameter in model.named_parameters():
    parameter.requires_grad = name.startswith("head")
print("classes", model.num_classes, "features", model.num_features)
