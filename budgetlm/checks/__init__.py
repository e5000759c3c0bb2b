"""What the doctor looks at: machine, folders, study, and whether it all fits. `doctor.py` has them in order."""
