"""TensorRT engines: imported, built, proved and run through the bindings that this machine has."""
