"""What both sides must agree on: the study, the messages, the networks, the tasks."""
