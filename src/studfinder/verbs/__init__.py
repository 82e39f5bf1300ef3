"""What sf.* and the command line both call."""
