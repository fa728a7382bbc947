"""Power meters: where a device's watts are read, and which of its sensors are the whole."""
