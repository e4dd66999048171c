"""ONNX, for onnxruntime, TensorRT and OpenVINO."""
