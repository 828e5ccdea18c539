"""What is recorded about a run: metrics, progress, profiles, its folder and its status page."""
