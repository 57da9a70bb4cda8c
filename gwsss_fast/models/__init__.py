"""Backbones, the group classifier, DeepLab-V2 and their weight files."""
