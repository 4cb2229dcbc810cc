"""``palu-calibrate``: what keys after RoPE and values look like, and the codec that loses least of them."""
