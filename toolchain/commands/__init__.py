"""The verbs of the command line, a file each, which import what they need when they run."""
