"""Workers: one process for one job on one device, watched, so that whatever ends a job never ends the study."""
