"""The end of the chain: files for each target, engines, the report."""
