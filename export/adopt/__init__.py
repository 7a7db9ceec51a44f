"""Adoption of an ONNX file from elsewhere: its graph, its preparation of pictures, and its own vectors."""
