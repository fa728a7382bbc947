"""Charts as SVG text, drawn without a library."""
