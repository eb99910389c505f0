"""Jobs that really run: training, processing, transform and tuning, on one life cycle."""
