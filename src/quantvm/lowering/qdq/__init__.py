"""The lowering that computes in float between dequantize and quantize, as ONNX and PT2E define it."""
