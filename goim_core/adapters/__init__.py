"""Adapters to what is outside of the process: one module for each, and an extra of this package to install.

Nothing of the core imports them.
"""
