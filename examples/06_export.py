"""You learn to take a network out of Python: torch.export and ONNX, any batch and image size.

    python 06_export.py

ONNX needs: pip install onnx onnxscript, and onnxruntime to run what comes out.
"""

import importlib.util

import timm
import torch

import secvit  # noqa: F401  registers the models with timm

torch.manual_seed(0)
model = timm.create_model("secvit_nano").eval()
images = torch.randn(2, 3, 64, 64)  # two: a batch of one would be taken as "always one"

B, H, W = (torch.export.Dim(name, min=low, max=high) for name, low, high in [
    ("batch", 1, 64), ("height", 32, 1024), ("width", 32, 1024)
])  # fmt: skip
sizes = {0: B, 2: H, 3: W}
program = torch.export.export(model, (images,), dynamic_shapes=(sizes,))
torch.export.save(program, "secvit_nano.pt2")
other = torch.randn(3, 3, 48, 96)
with torch.inference_mode():
    difference = (program.module()(other) - model(other)).abs().max().item()
print(f"wrote secvit_nano.pt2; at another size it differs by {difference:.1e}")

if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript"):
    torch.onnx.export(
        model, (images,), "secvit_nano.onnx", dynamo=True, dynamic_shapes=(sizes,), verbose=False,
        input_names=["images"], output_names=["logits"],
    )  # fmt: skip
    print("wrote secvit_nano.onnx")
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession("secvit_nano.onnx", providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"images": other.numpy()})
        with torch.inference_mode():
            difference = (torch.from_numpy(logits) - model(other)).abs().max().item()
        print(f"onnxruntime differs by {difference:.1e}")
else:
    print("no ONNX here: pip install onnx onnxscript onnxruntime")
