"""Why a model says what it says of local records: attributions, a check of them, a report."""
