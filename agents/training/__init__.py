"""Training in imagination."""
