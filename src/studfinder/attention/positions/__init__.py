"""Position encodings for controls: RoPE (full, partial, p-RoPE), none, ALiBi."""
