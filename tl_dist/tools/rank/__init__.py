"""Which pretrained network to start from, before any is trained."""
