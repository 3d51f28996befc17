"""The version, alone in a module without imports so that the build can read it without torch."""

__version__ = "0.1.0"
