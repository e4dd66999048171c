"""Export to ONNX, for onnxruntime, TensorRT and OpenVINO."""
