"""A network as a graph or a file for others: ONNX, PyTorch's export, OpenVINO."""
