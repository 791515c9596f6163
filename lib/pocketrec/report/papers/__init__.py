"""Tables, pictures and verdicts of one paper each, from the records and measurements of its suite."""
