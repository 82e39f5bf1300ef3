"""Softpick: rectified attention weights that need not sum to one."""

from studfinder.attention.softpick.layer import Softpick

__all__ = ["Softpick"]
