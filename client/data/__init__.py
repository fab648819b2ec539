"""From a hospital's files to tensors that keep the study's contract."""
