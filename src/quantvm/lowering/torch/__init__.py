"""The lowering of numerics=torch and numerics=integer: one kernel for each fused operator."""
