"""The study with a pretrained model (docs/pretrained.md): its file, and its trees as text."""
