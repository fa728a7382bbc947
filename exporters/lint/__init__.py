"""What a target refuses, silently changes or does not fuse in an ONNX graph, found without running it."""
