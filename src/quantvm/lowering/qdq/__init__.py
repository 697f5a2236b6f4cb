"""The lowering that computes what stands between dequantize and quantize in float, as ONNX and PT2E mean it."""
