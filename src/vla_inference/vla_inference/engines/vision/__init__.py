"""Vision encoders as ONNX graphs and TensorRT engines."""
