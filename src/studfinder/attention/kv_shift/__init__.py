"""KV shifting: each head reads a mixture of this token's and the previous token's key and value."""
