"""`quantvm run`: accuracy and parity of the models under PyTorch and TVM, on labelled images."""
