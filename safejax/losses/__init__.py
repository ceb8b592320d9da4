"""Losses as arithmetic: arrays in, arrays out; no parameters, no networks, no means."""
