"""ONNX files -> Relax in QDQ form."""
