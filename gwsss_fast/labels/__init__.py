"""Class activation maps, pseudo labels and dense CRF presets."""
