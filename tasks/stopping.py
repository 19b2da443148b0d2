"""The wish that everything under way ends: set by whoever runs the flow, obeyed by what takes long."""

import threading

stop_requested = threading.Event()
"""Set to end all trainings at their next update, checkpoints kept, and all waiting for other runs."""
