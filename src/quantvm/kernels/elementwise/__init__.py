"""Element-wise operators, concatenation, normalization and the change between float and integers."""
