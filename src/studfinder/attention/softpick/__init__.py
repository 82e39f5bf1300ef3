"""Softpick: rectified attention weights that need not sum to one."""
