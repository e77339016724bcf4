"""Version of the package, which draws carry."""

__version__ = "0.2.0.dev0"
