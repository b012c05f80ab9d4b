"""The settings: `model` says what there is, `load` reads the files."""
