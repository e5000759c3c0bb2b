"""What can stand in for training when a search is replayed: recorded runs, modelled ones, a clock moved by hand."""
