"""You learn to take a network out of Python: ONNX and torch.export, any batch and image size.

    python 06_export.py

ONNX needs: pip install "secvit[export]".  The same for a run that you trained: secvit export RUN
"""

import importlib.util

import timm
from timm.data import resolve_data_config

import secvit

model = timm.create_model("secvit_nano.cifar10", pretrained=True)
config = resolve_data_config(model=model)
view = {
    "size": config["input_size"][1:], "mean": config["mean"], "std": config["std"],
    "classes": model.pretrained_cfg["label_names"],
}  # fmt: skip

# each file is compared with PyTorch in its own runtime, and a JSON file beside it says how to prepare images
facts = secvit.export.export(model, "secvit_nano.pt2", "pt2", dynamic=True, **view)
compared = facts["compared_with_pytorch"]
print(f"wrote secvit_nano.pt2; in {facts['runtime']} it differs by {compared['largest_difference']:.1e}")

if importlib.util.find_spec("onnxscript") and importlib.util.find_spec("onnxruntime"):
    facts = secvit.export.export(model, "secvit_nano.onnx", "onnx", dynamic=True, **view)
    difference = facts["compared_with_pytorch"]["largest_difference"]
    print(f"wrote secvit_nano.onnx; in {facts['runtime']} it differs by {difference:.1e}")

    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession("secvit_nano.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 48, 96)  # another size and another batch
    (logits,) = session.run(None, {"images": images.numpy()})
    print("classes:", [facts["output"]["classes"][i] for i in logits.argmax(1)])
else:
    print('no ONNX here: pip install "secvit[export]"')
