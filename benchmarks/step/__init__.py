"""What `dp_step.py` times: networks, methods, their steps, and the turns that they take."""
