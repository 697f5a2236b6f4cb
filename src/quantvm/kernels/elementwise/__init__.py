"""Element-wise operators, concatenation, normalization, quantize and dequantize."""
