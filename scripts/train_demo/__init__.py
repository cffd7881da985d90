"""Makes the models, dictionaries and tokens that ship in `crossvis_tl/demo/`. Run with `make train-demo`."""
