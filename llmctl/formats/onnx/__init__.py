"""ONNX files, which onnxruntime runs: models go there and don't come back."""
