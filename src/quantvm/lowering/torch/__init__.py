"""The lowering that gives the bits of PyTorch's engines, or of integers alone: one kernel a fused operator."""
